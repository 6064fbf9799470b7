"""What each kernel must move and multiply at least, and the times that follow: the yardstick of `kernels/bench.py`.

N tokens of D channels in elements of b bytes; an array that is read counts once, one that is written counts once.

    kernel                 forward                          backward                               together
    rmsnorm                2bND      x; out                 3bND      dout, x; dx
    add_rmsnorm            4bND      x, res.; out, total    4bND      dout, dtotal, total; dx
    rope (q and k)         4bND                             4bND
    swiglu                 3bNF      gate, up; out          5bNF      dout, gate, up; dgate, dup
    cross_entropy          bNV       logits                 2bNV      logits; dlogits              2bNV: in place, in one pass
    linear_cross_entropy   2NDV FLOP                        4NDV FLOP
    embedding              2bND      rows; out              b(ND+VD)  dout; dweight
    adamw                  4P        float32 gradients      30P       param, m, v r+w, grad, bfloat16 copy
    attention (causal)     2NTD FLOP: half of 4NTD          5NTD FLOP: five products, forward has two

What is small beside these is left out: weights of norms, row statistics, tables of angles, token ids. adamw's "forward" is the norm
of the gradient, its "backward" the update of P parameters. Where nothing stands under "together" it is the sum.
"""
from minillama.nn import count_params

BANDWIDTH, MATMUL = 4.3e12, 790e12  # bytes/s and FLOP/s of an H200, fixed, so that runs on different days can be compared
PEAK = 989e12  # FLOP/s: what MFU is counted against, bfloat16, H100 and H200
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
DIRECTIONS = ("forward", "backward", "forward+backward")


def _rmsnorm(b, N, D, **_):
    return (2 * b * N * D, 0), (3 * b * N * D, 0), None


def _four_passes(b, N, D, **_):
    return (4 * b * N * D, 0), (4 * b * N * D, 0), None


def _swiglu(b, N, F, **_):
    return (3 * b * N * F, 0), (5 * b * N * F, 0), None


def _cross_entropy(b, N, V, **_):
    return (b * N * V, 0), (2 * b * N * V, 0), (2 * b * N * V, 0)


def _linear_cross_entropy(b, N, D, V, **_):
    operands = b * (N * D + V * D)
    return (operands, 2 * N * D * V), (2 * operands, 4 * N * D * V), (2 * operands, 6 * N * D * V)


def _embedding(b, N, D, V, **_):
    return (2 * b * N * D, 0), (b * (N * D + V * D), 0), None


def _adamw(b, P, **_):
    return (4 * P, 0), (30 * P, 0), None


def _attention(b, N, T, D, **_):
    return (4 * b * N * D, 2 * N * T * D), (8 * b * N * D, 5 * N * T * D), None


COUNTS = {
    "rmsnorm": _rmsnorm,
    "add_rmsnorm": _four_passes,
    "rope": _four_passes,
    "swiglu": _swiglu,
    "cross_entropy": _cross_entropy,
    "linear_cross_entropy": _linear_cross_entropy,
    "embedding": _embedding,
    "adamw": _adamw,
    "attention": _attention,
}


def floor(kernel, direction, shape, dtype):
    """The least a kernel can do.

    Args:
        kernel:    str    one of COUNTS
        direction: str    one of DIRECTIONS
        shape:     dict   of the letters N, D, F, V, T, P; those the kernel does not have are ignored
        dtype:     str    one of BYTES

    Returns:
        (bytes, FLOPs)
    """
    forward, backward, both = COUNTS[kernel](BYTES[dtype], **shape)
    return dict(zip(DIRECTIONS, (forward, backward, both or tuple(map(sum, zip(forward, backward))))))[direction]


def floor_ms(count, bandwidth=BANDWIDTH, matmul=MATMUL):
    """Milliseconds that (bytes, FLOPs) take at these rates per second, memory and arithmetic overlapping perfectly."""
    size, flops = count
    return 1e3 * max(size / bandwidth, flops / matmul)


def step_flops(config, seq_len):
    """FLOPs of training on one token, counted in both usual ways: {"causal", "full"}.

    causal: 6 N + 6 L T D, N the entries of all matrices but the embedding: attention's lower triangle only, the work there is;
    full:   6 N + 12 L T D: the whole square, as most published figures count.
    """
    matrices = count_params(config) - config.vocab_size * config.dim
    square = 12 * config.n_layers * seq_len * config.dim
    return {"causal": 6 * matrices + square // 2, "full": 6 * matrices + square}


def model_gemms(config, tokens):
    """Matrix products of one forward of a model: a list of (times, M, K, N), with q, k, v merged and gate, up too.

    Each comes back twice in backward: (M, N) x (N, K) for the input and (N, M) x (M, K) for the weight.
    """
    D, F, L = config.dim, config.hidden_dim, config.n_layers
    return [(L, tokens, D, 3 * D), (L, tokens, D, D), (L, tokens, D, 2 * F), (L, tokens, F, D), (1, tokens, D, config.vocab_size)]
