"""The benchmark: `python -m kernels.bench`. See __main__.py."""
