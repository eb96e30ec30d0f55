"""Graph hypernetworks: parameters of nets that were never trained, predicted from their graphs."""
