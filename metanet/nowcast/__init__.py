"""Nowcasting: a network that predicts the parameters of a network in training some steps ahead."""
