"""The optimizer, its groups of parameters, and the learning rate."""
