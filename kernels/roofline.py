"""Rooflines: the bytes a kernel must move and the FLOPs it must compute at least, and the time that follows from them.

`kernels/bench` compares measured times with this time. N tokens of D channels in elements of b bytes; an array counts
once if it is read, and once if it is written.

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

Small terms are left out: weights of norms, row statistics, tables of angles, token ids. adamw's "forward" is the norm of the
gradient, its "backward" the update of P parameters. An empty entry under "together" means the sum of the two.
"""
from minillama.report.plan import flops_per_token

BANDWIDTH, MATMUL = 4.3e12, 790e12  # bytes/s and FLOP/s of an H200, fixed, so that runs on different days can be compared
PEAK = 989e12  # FLOP/s: what MFU is counted against, bfloat16, H100 and H200
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
DIRECTIONS = ("forward", "backward", "forward+backward")



def _operands(b, N, D, V):
    return b * (N * D + V * D)


def _four_passes(b, N, D, **_):
    return (4 * b * N * D, 0), (4 * b * N * D, 0), None


COUNTS = {  # kernel -> (b, N, D, ...) -> (bytes, FLOPs) of forward, of backward, and of both together if that is not the sum
    "rmsnorm": lambda b, N, D, **_: ((2 * b * N * D, 0), (3 * b * N * D, 0), None),
    "add_rmsnorm": _four_passes,
    "rope": _four_passes,
    "swiglu": lambda b, N, F, **_: ((3 * b * N * F, 0), (5 * b * N * F, 0), None),
    "cross_entropy": lambda b, N, V, **_: ((b * N * V, 0), (2 * b * N * V, 0), (2 * b * N * V, 0)),
    "linear_cross_entropy": lambda b, N, D, V, **_: (
        (_operands(b, N, D, V), 2 * N * D * V), (2 * _operands(b, N, D, V), 4 * N * D * V), (2 * _operands(b, N, D, V), 6 * N * D * V)),
    "embedding": lambda b, N, D, V, **_: ((2 * b * N * D, 0), (_operands(b, N, D, V), 0), None),
    "adamw": lambda b, P, **_: ((4 * P, 0), (30 * P, 0), None),
    "attention": lambda b, N, T, D, **_: ((4 * b * N * D, 2 * N * T * D), (8 * b * N * D, 5 * N * T * D), None),
}


def bytes_and_flops(kernel, direction, shape, dtype):
    """What a kernel must spend at least.

    Args:
        kernel:    str    one of COUNTS
        direction: str    one of DIRECTIONS
        shape:     dict   of the letters N, D, F, V, T, P; letters that the kernel does not use are ignored
        dtype:     str    one of BYTES

    Returns:
        (bytes, FLOPs)
    """
    forward, backward, both = COUNTS[kernel](BYTES[dtype], **shape)
    return dict(zip(DIRECTIONS, (forward, backward, both or tuple(map(sum, zip(forward, backward))))))[direction]


def roofline_ms(count, bandwidth=BANDWIDTH, matmul=MATMUL):
    """Milliseconds that (bytes, FLOPs) take at these rates per second, if memory and arithmetic overlap perfectly."""
    size, flops = count
    return 1e3 * max(size / bandwidth, flops / matmul)


def step_flops(config, seq_len):
    """FLOPs of training on one token, counted in both usual ways: {"causal", "full"}.

    "causal" counts the lower triangle of attention only (`minillama.plan.flops_per_token`); "full" adds the other half of the square,
    6 L T D, as most published figures do.
    """
    causal = flops_per_token(config, seq_len)
    return {"causal": causal, "full": causal + 6 * config.n_layers * seq_len * config.dim}


def model_gemms(config, tokens):
    """Matrix products of one forward of a model: a list of (times, M, K, N), with q, k, v merged and gate, up too.

    Backward has two products for each: (M, N) x (N, K) for the input and (N, M) x (M, K) for the weight.
    """
    D, F, L = config.dim, config.hidden_dim, config.n_layers
    return [(L, tokens, D, 3 * D), (L, tokens, D, D), (L, tokens, D, 2 * F), (L, tokens, F, D), (1, tokens, D, config.vocab_size)]
