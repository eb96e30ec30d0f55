"""Search: architectures of a space, proposed by a strategy, trained and measured, down to a front."""
