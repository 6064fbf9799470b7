"""Every tolerance of the test-suite, and why it is what it is."""

FINITE_DIFFERENCE = 1e-7  # float64 central differences, h = 1e-5: 4e-10 is typical, of the tensor's largest gradient
ORACLE = 1e-10  # NumPy float64 against PyTorch float64: two correct ways to compute one number, 1e-13 is typical
TILES = 1e-12  # flash against plain attention in float64: the same sums in another order
DECODE_FLOAT32 = 1e-5  # cached decoding against the full forward, float32 logits of O(1)
ACCUMULATION_FLOAT32 = 2e-6  # micro-batches against one batch, of the largest gradient: float32 sums in another order
EXACT = 0.0
