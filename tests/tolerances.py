"""Every tolerance of the test-suite, and why it is what it is."""

FINITE_DIFFERENCE = 1e-7  # float64 central differences, h = 1e-5: 4e-10 is typical, of the tensor's largest gradient
ORACLE = 1e-10  # NumPy float64 against PyTorch float64: two correct ways to compute one number, 1e-13 is typical
TILES = 1e-12  # flash against plain attention in float64: the same sums in another order
DECODE_FLOAT32 = 1e-5  # cached decoding against the full forward, float32 logits of O(1)
ACCUMULATION_FLOAT32 = 2e-6  # micro-batches against one batch, of the largest gradient: float32 sums in another order
EXACT = 0.0
KERNEL_FACTOR = 2.0  # a kernel's error over PyTorch's in the same dtype, both against float64 NumPy
KERNEL_EPS = 2.0  # added to it, in units of the dtype's eps times the largest value: where PyTorch happens to be almost exact
TWIN_RUN = 1e-4  # losses of two float32 engines at every one of 50 steps: 1e-5 is typical; a wrong decay or a forgotten factor gives 1e-2
MODEL_FLOAT32 = 2e-6  # float32 logits and gradients of two engines, of the largest: float32 sums in another order
INTERCHANGE = 1e-5  # parameters of O(0.1) after 3 steps on one engine and 3 on another, against 6 on one
TWIN_RUN_BFLOAT16 = 5e-3  # losses in bfloat16 (8 bits) beside NumPy's in float32: for 3 steps 1e-3 is typical, for 200 2e-3
CLIENT_LOGITS = 2e-5  # float32 logits of O(1) in transformers and llama.cpp against ours; gradients, of the largest: 4e-6 is typical
LLAMA_CPP_NARROW = 2e-2  # float16 or bfloat16 weights, of the largest logit: llama.cpp rounds activations alike, 6e-4 and 5e-3 are typical
CLIENT_NATS = 1e-4  # log-likelihoods of whole documents in lm-eval: sums of some tens of terms
LOGIT_PARTS = 1e-5  # float32: what each part of the model wrote into the stream, added up, against a logit of O(10); 1e-6 is typical
NATS_OF_A_TEXT = 1e-9  # float64 sums of some hundreds of logarithms against the corpus' own bits: 4e-14 is typical
