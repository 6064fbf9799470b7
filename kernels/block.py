"""One transformer layer of Triton kernels and cuBLAS products, with its backward written by hand.

    h   = x + wo attention(rope(wq n), rope(wk n), wv n)      n = rmsnorm(x)
    out = h + w2 swiglu(w1 m, w3 m)                           m = rmsnorm(h)

Readable twin: minillama/nn/block.py. Lesson: lessons/15_gpu.ipynb.

LLaMA's authors wrote the layer's backward by hand to keep only what is expensive to recompute, the outputs of the linear layers
[LLaMA §2.4]. This backward does the same: it keeps x, the rotated q and k, v, the attention's output and log-sum-exp, h, gate and up,
which is 6 D + 2 F elements and 4 H bytes per token. It recomputes n, m and the product of gate and up: one pass over memory each, which
adds a few per cent to the matrix products. Plain autograd keeps these three too (see `python -m kernels.bench --memory`).

Weights that multiply the same input are merged: wq, wk, wv are one product, w1 and w3 another. Merging costs nothing if the weights
are next to each other in memory, as in the engine.
"""
import torch
import torch.nn.functional as F

from minillama.nn.model import BLOCK_NAMES

from .attention import attention_backward, attention_forward
from .launch import check, check_shape
from .rmsnorm import add_rmsnorm_backward, add_rmsnorm_forward, rmsnorm_forward
from .rope import rope_backward, rope_forward
from .sdpa import sdpa_backward, sdpa_forward
from .swiglu import swiglu_backward, swiglu_forward


def merged(*weights):
    """Matrices (rows_i, D) stacked by rows: a view if they are next to each other in memory, else a copy."""
    first, expected = weights[0], weights[0].data_ptr()
    for weight in weights:
        if weight.data_ptr() != expected or not weight.is_contiguous() or weight.device.type == "meta":
            return torch.cat(weights)
        expected += weight.numel() * weight.element_size()
    if first.storage_offset() + sum(weight.numel() for weight in weights) > first.untyped_storage().nbytes() // first.element_size():
        return torch.cat(weights)                                # next to each other by chance: separate allocations
    return first.as_strided((sum(len(weight) for weight in weights), first.shape[1]), (first.shape[1], 1))


def products(names, dout, x):
    """Gradients by name of weights that multiply the same input: their rows of (N, Dout)^T (N, Din)."""
    return dict(zip(names, (dout.flatten(0, -2).t() @ x.flatten(0, -2)).chunk(len(names))))


def block_forward(x, params, cos, sin, config, attention="triton"):
    """Run one layer.

    Args:
        x:         (B, T, D) float     residual stream
        params:    dict of 9           attention_norm (D,), wq wk wv wo (D, D), ffn_norm (D,), w1 gate (F, D), w2 down (D, F), w3 up (F, D)
        cos, sin:  (T, Dh/2) float32   rows of rope_tables
        config:    ModelConfig         n_heads, head_dim, norm_eps
        attention: str                 "triton", or PyTorch's "cudnn" or "flash" (see sdpa.py)

    Returns:
        out:       (B, T, D) like x
        cache:     (kept, rest): the tensors kept for backward, and everything else it needs

    Raises:
        ValueError: dtype, device or shape that a kernel does not cover; the sentence names the argument
    """
    check("block_forward", x=x, **params)
    if x.ndim != 3 or x.shape[-1] != config.dim:
        raise ValueError(f"block_forward: x must be (B, T, {config.dim}), got shape {tuple(x.shape)}")
    check_shape("block_forward", (config.dim, config.dim), **{name: params[name] for name in ("wq", "wk", "wv", "wo")})
    check_shape("block_forward", (config.hidden_dim, config.dim), w1=params["w1"], w3=params["w3"])
    check_shape("block_forward", (config.dim, config.hidden_dim), w2=params["w2"])
    attention = attention if x.shape[1] > 1 else "triton"        # cuDNN does not cover a single position
    H, heads = config.n_heads, (*x.shape[:2], 3 * config.n_heads, config.head_dim)

    n, _ = rmsnorm_forward(x, params["attention_norm"], config.norm_eps)
    qkv = F.linear(n, merged(params["wq"], params["wk"], params["wv"])).view(heads)  # (B, T, 3H, Dh)
    rope_forward(qkv[:, :, :2 * H], cos, sin, out=qkv[:, :, :2 * H])  # in place: we own the buffer, and nobody needs the unrotated q and k
    a, attended = _attend(qkv.split(H, 2), attention)
    a = a.reshape(x.shape)
    (m, h), _ = add_rmsnorm_forward(F.linear(a, params["wo"]), x, params["ffn_norm"], config.norm_eps)

    gate_up = F.linear(m, merged(params["w1"], params["w3"]))    # (B, T, 2F)
    f, _ = swiglu_forward(*gate_up.chunk(2, -1))
    out = F.linear(f, params["w2"])
    out += h                                                     # in place: we own it

    kept = (x, qkv, a, h, gate_up, *(attended if attention == "triton" else ()))
    return out, (kept, (None if attention == "triton" else attended, params, cos, sin, config, attention))


def _attend(qkv, attention):
    """Attention by the chosen back end: out, and what its backward needs besides q, k, v and out."""
    if attention == "triton":
        out, (*_, lse) = attention_forward(*qkv)
        return out, (lse,)
    return sdpa_forward(*qkv, attention)


def block_backward(dout, cache, products=products):
    """Gradients of block_forward: its lines in reverse order, with n, m and the product of gate and up computed again.

    The two residual additions are fused into the norms' backwards: dh = dout + (through ffn_norm), dx = dh + (through attention_norm).

    Args:
        products: function    of a caller that takes the gradients of the matrices itself, to add them to a sum where they are computed

    Returns:
        dx:    (B, T, D) like x
        grads: dict with the keys of params; wq, wk, wv are parts of one array, and so are w1, w3. Without those that `products` kept
    """
    (x, qkv, a, h, gate_up, *lse), (graph, params, cos, sin, config, attention) = cache
    H, grads = config.n_heads, {}

    df = dout @ params["w2"]
    f, dgate_up = torch.empty_like(df), torch.empty_like(gate_up)  # (B, T, F), (B, T, 2F)
    swiglu_backward(df, gate_up.chunk(2, -1), out=dgate_up, product=f)
    grads |= products(("w2",), dout, f)
    m, ffn_norm = rmsnorm_forward(h, params["ffn_norm"], config.norm_eps)
    grads |= products(("w1", "w3"), dgate_up, m)
    dh, grads["ffn_norm"] = add_rmsnorm_backward(dgate_up @ merged(params["w1"], params["w3"]), dout, ffn_norm)

    da = (dh @ params["wo"]).view(*x.shape[:2], H, config.head_dim)
    grads |= products(("wo",), dh, a)
    dqkv = torch.empty_like(qkv)                                 # (B, T, 3H, Dh)
    if attention == "triton":
        attention_backward(da, (*qkv.split(H, 2), a.view(da.shape), *lse), out=dqkv.split(H, 2))
    else:
        sdpa_backward(da, graph, out=dqkv.split(H, 2))
    rope_backward(dqkv[:, :, :2 * H], (cos, sin), out=dqkv[:, :, :2 * H])
    dqkv = dqkv.flatten(2)                                       # (B, T, 3D)
    n, attention_norm = rmsnorm_forward(x, params["attention_norm"], config.norm_eps)
    grads |= products(("wq", "wk", "wv"), dqkv, n)
    dn = dqkv @ merged(params["wq"], params["wk"], params["wv"])
    dx, grads["attention_norm"] = add_rmsnorm_backward(dn, dh, attention_norm)
    return dx, grads


class Block(torch.autograd.Function):
    """The pair as one node of autograd. Inputs: x, cos, sin, config, attention, products, then the 9 weights in the order of
    BLOCK_NAMES."""

    @staticmethod
    def forward(ctx, x, cos, sin, config, attention, products, *weights):
        params = dict(zip(BLOCK_NAMES, weights, strict=True))
        out, (kept, (graph, *_, attention)) = block_forward(x, params, cos, sin, config, attention)
        ctx.save_for_backward(cos, sin, *weights, *kept)
        ctx.rest = graph, config, attention, products
        return out

    @staticmethod
    def backward(ctx, dout):
        cos, sin, *saved = ctx.saved_tensors
        weights, kept = saved[:len(BLOCK_NAMES)], saved[len(BLOCK_NAMES):]
        graph, config, attention, products = ctx.rest
        dx, grads = block_backward(dout, (kept, (graph, dict(zip(BLOCK_NAMES, weights)), cos, sin, config, attention)), products)
        return dx, None, None, None, None, None, *(grads.get(name) for name in BLOCK_NAMES)


def block(x, params, cos, sin, config, attention="triton", products=products):
    """block_forward with autograd: (B, T, D) -> (B, T, D). params: the 9 tensors of a layer under their short names."""
    return Block.apply(x, cos, sin, config, attention, products, *(params[name] for name in BLOCK_NAMES))
