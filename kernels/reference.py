"""Every op's forward in plain PyTorch: autograd is the oracle that the hand-written backwards are checked against.

Same names, argument order and shapes as `minillama.nn`, but each function returns `out` alone: autograd keeps what it needs.
Deliberately written another way than the NumPy side where PyTorch has its own (scaled_dot_product_attention, cross_entropy,
silu), so that the two cannot share a mistake. Imports no triton.
"""
import torch
import torch.nn.functional as F

from minillama.nn import IGNORE


def linear_forward(x, weight):
    return F.linear(x, weight)


def embedding_forward(tokens, weight):
    return F.embedding(tokens, weight)


def rmsnorm_forward(x, weight, eps=1e-6):
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def rope_forward(x, cos, sin):
    """Rotate adjacent pairs: (a, b) -> (a cos - b sin, a sin + b cos). cos, sin: (T, Dh/2)."""
    a, b = x[..., 0::2], x[..., 1::2]                            # (B, T, H, Dh/2)
    cos, sin = cos[:, None, :], sin[:, None, :]                  # (T, 1, Dh/2)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


def attention_forward(q, k, v):
    """(B, T, H, Dh) x 3 -> (B, T, H, Dh), causal."""
    heads_first = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(*heads_first, is_causal=True).transpose(1, 2)


def swiglu_forward(gate, up):
    return F.silu(gate) * up


def cross_entropy_forward(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)


def block_forward(x, params, cos, sin, config):
    """One layer; params: the 9 tensors of a block under their short names."""
    heads = (*x.shape[:2], config.n_heads, config.head_dim)      # (B, T, H, Dh)
    n = rmsnorm_forward(x, params["attention_norm"], config.norm_eps)
    q, k, v = (linear_forward(n, params[name]).reshape(heads) for name in ("wq", "wk", "wv"))
    a = attention_forward(rope_forward(q, cos, sin), rope_forward(k, cos, sin), v)
    h = x + linear_forward(a.reshape(x.shape), params["wo"])
    m = rmsnorm_forward(h, params["ffn_norm"], config.norm_eps)
    return h + linear_forward(swiglu_forward(linear_forward(m, params["w1"]), linear_forward(m, params["w3"])), params["w2"])


def rope_tables(T, head_dim, theta=10000.0, dtype=torch.float32):
    """cos, sin: (T, Dh/2) each, from complex exponentials."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    turns = torch.polar(torch.ones((), dtype=torch.float64), torch.outer(torch.arange(T, dtype=torch.float64), frequencies))
    return turns.real.to(dtype), turns.imag.to(dtype)


def model_forward(tokens, params, config):
    """(B, T) int64, flat dict of tensors -> logits (B, T, V)."""
    x = embedding_forward(tokens, params["tok_embeddings"])
    cos, sin = rope_tables(tokens.shape[1], config.head_dim, config.rope_theta, x.dtype)
    for layer in range(config.n_layers):
        prefix = f"layers.{layer}."
        block = {name.removeprefix(prefix): tensor for name, tensor in params.items() if name.startswith(prefix)}
        x = block_forward(x, block, cos, sin, config)
    return linear_forward(rmsnorm_forward(x, params["norm"], config.norm_eps), params["output"])
