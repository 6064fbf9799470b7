"""Every op's forward in plain PyTorch: autograd is the oracle that the hand-written backwards are checked against.

Same names, argument order and shapes as `minillama.nn`, but each function returns `out` alone: autograd keeps what it needs.
Where PyTorch has its own function (scaled_dot_product_attention, cross_entropy, silu), it is used instead of the formula of the NumPy
side, so that the two sides cannot share a mistake. dtype in = dtype out. The two steps of the optimiser are at the end.
Runs on every device; does not import triton.
"""
import math

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
    """Rotate adjacent pairs: (a, b) -> (a cos - b sin, a sin + b cos). cos, sin: (T, Dh/2), float32 for an x of lower precision."""
    a, b = x[..., 0::2], x[..., 1::2]                            # (B, T, H, Dh/2)
    cos, sin = cos[:, None, :], sin[:, None, :]                  # (T, 1, Dh/2)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x.dtype)


def attention_forward(q, k, v):
    """(B, Tq, H, Dh), (B, Tk, H, Dh) x 2 -> (B, Tq, H, Dh), causal: the queries are the last Tq of the Tk positions."""
    Tq, Tk = q.shape[1], k.shape[1]
    mask = None                                                  # is_causal starts its diagonal at the top left: right only for Tq = Tk
    if 1 < Tq < Tk:
        mask = torch.ones(Tq, Tk, dtype=torch.bool, device=q.device).tril(Tk - Tq)
    heads_first = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(*heads_first, mask, is_causal=Tq == Tk).transpose(1, 2)


def swiglu_forward(gate, up):
    return F.silu(gate) * up


def cross_entropy_forward(logits, targets):
    """Mean over the scored tokens; 0 if there are none, with gradients of 0 (PyTorch's own mean would be NaN)."""
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return (nats / (targets != IGNORE).sum().clamp(min=1)).sum()


def block_forward(x, params, cos, sin, config, kv=None):
    """One layer; params: the 9 tensors of a block under their short names; kv: see `minillama.nn.block`."""
    heads = (*x.shape[:2], config.n_heads, config.head_dim)      # (B, T, H, Dh)
    n = rmsnorm_forward(x, params["attention_norm"], config.norm_eps)
    q, k, v = (linear_forward(n, params[name]).reshape(heads) for name in ("wq", "wk", "wv"))
    q, k = rope_forward(q, cos, sin), rope_forward(k, cos, sin)
    if kv is not None:
        k, v = kv(k, v)                                          # (B, T so far, H, Dh) each
    a = attention_forward(q, k, v)
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


@torch.no_grad()
def clip_coefficient(grad, max_norm):
    """The factor of clipping by the global norm, which stays on the device: (norm, coefficient), two 0-dim float32 tensors.

    coefficient = min(1, max_norm / norm), and 0 if the norm is not finite: then `adamw_step` changes nothing, so that the host need not
    wait for the device to learn whether the norm is finite.
    """
    norm = torch.linalg.vector_norm(grad)
    return norm, coefficient_of(norm, max_norm)


def coefficient_of(norm, max_norm):
    """The coefficient alone, of a norm that is known: that of gradients in several processes, say."""
    return torch.where(norm.isfinite(), (max_norm / norm).clamp(max=1), 0)


def adamw_factors(step, lr, beta1, beta2, weight_decay):
    """What the step and its learning rate make of an update: lr / (1 - beta1^step), 1 - lr weight_decay, sqrt(1 - beta2^step)."""
    return lr / (1 - beta1**step), 1 - lr * weight_decay, math.sqrt(1 - beta2**step)


def adamw_step(param, grad, m, v, step, lr, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, coefficient=None, copy=None):
    """minillama.optim.adamw_step on flat float32 tensors: updates param, m and v IN PLACE. See `adamw_update`."""
    adamw_update(param, grad, m, v, adamw_factors(step, lr, beta1, beta2, weight_decay), beta1, beta2, eps, coefficient, copy)


@torch.no_grad()
def adamw_update(param, grad, m, v, factors, beta1=0.9, beta2=0.95, eps=1e-8, coefficient=None, copy=None):
    """adamw_step with what changes from step to step made ready by `adamw_factors`, so that it may lie on the device.

    factors:     three floats, or (3,) float32 on the device
    coefficient: 0-dim float32 tensor    multiplies grad (`clip_coefficient`); if it is 0, param, m and v stay as they are
    copy:        flat tensor             of a lower precision: receives the new parameters, rounded
    """
    lr_hat, keep, root_correction = factors
    live = 1.0
    if coefficient is not None:
        live = (coefficient > 0).float()                         # 0 or 1: a factor of every change below
        grad = torch.where(coefficient > 0, coefficient * grad, 0)  # a product alone would keep a NaN
    m += live * (1 - beta1) * (grad - m)
    v += live * (1 - beta2) * (grad * grad - v)
    update = m / (v.sqrt() / root_correction + eps)
    param *= 1 - live * (1 - keep)
    param -= live * lr_hat * update
    if copy is not None:
        copy.copy_(param)
