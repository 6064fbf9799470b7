"""The same functions of the same names on torch tensors. `reference` is plain PyTorch and runs everywhere."""
