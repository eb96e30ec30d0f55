"""Graph metanetworks: networks that take the weights of other networks in, as neuron graphs."""
