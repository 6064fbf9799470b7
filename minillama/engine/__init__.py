"""What computes: the protocol of a back end, the one in NumPy, and the factory that finds the others."""
