"""What lesson 07 puts in place of the block: backward passes that miss a `+`, and blocks that are wired in another way.

The first are block_backward with one `+` less, called on the same caches; the second have a forward and a backward of their own,
made of the same ops. `lessons/lab.py` patches both into minillama.nn.model.
"""
import functools
import math

import numpy as np

from minillama import nn

LESS = {  # which `+` of the equations is missing: what stays of it
    "dout + … at h": "h",
    "dh + … at x": "x",
    "w1 and w3 into m": "m",
    "wq, wk and wv into n": "n",
}


def backward_without(less, dout, cache):
    """block_backward without some of its `+`: less is a string of h, x, m, n."""
    attention_norm, wq, wk, wv, rope_q, rope_k, attention, wo, ffn_norm, w1, w3, swiglu, w2 = cache
    grads = {}

    df, grads["w2"] = nn.linear_backward(dout, w2)
    dgate, dup = nn.swiglu_backward(df, swiglu)
    dm_gate, grads["w1"] = nn.linear_backward(dgate, w1)
    dm_up, grads["w3"] = nn.linear_backward(dup, w3)
    dm = dm_up if "m" in less else dm_gate + dm_up
    dh, grads["ffn_norm"] = nn.rmsnorm_backward(dm, ffn_norm)
    dh = dh if "h" in less else dout + dh

    da, grads["wo"] = nn.linear_backward(dh, wo)
    dq, dk, dv = nn.attention_backward(da.reshape(attention[0].shape), attention)
    dq, dk = nn.rope_backward(dq, rope_q), nn.rope_backward(dk, rope_k)
    dn_q, grads["wq"] = nn.linear_backward(dq.reshape(da.shape), wq)
    dn_k, grads["wk"] = nn.linear_backward(dk.reshape(da.shape), wk)
    dn_v, grads["wv"] = nn.linear_backward(dv.reshape(da.shape), wv)
    dn = dn_v if "n" in less else dn_q + dn_k + dn_v
    dx, grads["attention_norm"] = nn.rmsnorm_backward(dn, attention_norm)
    return (dx if "x" in less else dh + dx), grads


no_plus_backward = functools.partial(backward_without, "")
no_h_backward = functools.partial(backward_without, "h")
no_x_backward = functools.partial(backward_without, "x")
no_skips_backward = functools.partial(backward_without, "hx")
no_m_backward = functools.partial(backward_without, "m")
no_n_backward = functools.partial(backward_without, "n")


# ---- the two halves of a block, each from a normalised input ----
def attention_half(n, params, cos, sin, config):
    """wo attention(rope(wq n), rope(wk n), wv n)"""
    heads = (*n.shape[:2], config.n_heads, config.head_dim)
    (q, wq), (k, wk), (v, wv) = (nn.linear_forward(n, params[name]) for name in ("wq", "wk", "wv"))
    q, rope_q = nn.rope_forward(q.reshape(heads), cos, sin)
    k, rope_k = nn.rope_forward(k.reshape(heads), cos, sin)
    a, attention = nn.attention_forward(q, k, v.reshape(heads))
    a, wo = nn.linear_forward(a.reshape(n.shape), params["wo"])
    return a, (wq, wk, wv, rope_q, rope_k, attention, wo)


def attention_half_backward(dout, cache, grads):
    wq, wk, wv, rope_q, rope_k, attention, wo = cache
    da, grads["wo"] = nn.linear_backward(dout, wo)
    dq, dk, dv = nn.attention_backward(da.reshape(attention[0].shape), attention)
    dq, dk = nn.rope_backward(dq, rope_q), nn.rope_backward(dk, rope_k)
    dn_q, grads["wq"] = nn.linear_backward(dq.reshape(da.shape), wq)
    dn_k, grads["wk"] = nn.linear_backward(dk.reshape(da.shape), wk)
    dn_v, grads["wv"] = nn.linear_backward(dv.reshape(da.shape), wv)
    return dn_q + dn_k + dn_v


def ffn_half(m, params):
    """w2 swiglu(w1 m, w3 m)"""
    gate, w1 = nn.linear_forward(m, params["w1"])
    up, w3 = nn.linear_forward(m, params["w3"])
    f, swiglu = nn.swiglu_forward(gate, up)
    f, w2 = nn.linear_forward(f, params["w2"])
    return f, (w1, w3, swiglu, w2)


def ffn_half_backward(dout, cache, grads):
    w1, w3, swiglu, w2 = cache
    df, grads["w2"] = nn.linear_backward(dout, w2)
    dgate, dup = nn.swiglu_backward(df, swiglu)
    dm_gate, grads["w1"] = nn.linear_backward(dgate, w1)
    dm_up, grads["w3"] = nn.linear_backward(dup, w3)
    return dm_gate + dm_up


# ---- blocks that are wired in another way ----
def post_norm_forward(x, params, cos, sin, config):
    """As in 2017: the sum is normalised, and with it the stream itself.  h = norm(x + attention(x)), out = norm(h + ffn(h))"""
    a, attention = attention_half(x, params, cos, sin, config)
    h, attention_norm = nn.rmsnorm_forward(x + a, params["attention_norm"], config.norm_eps)
    f, ffn = ffn_half(h, params)
    out, ffn_norm = nn.rmsnorm_forward(h + f, params["ffn_norm"], config.norm_eps)
    return out, (attention, attention_norm, ffn, ffn_norm)


def post_norm_backward(dout, cache):
    attention, attention_norm, ffn, ffn_norm = cache
    grads = {}
    dsum, grads["ffn_norm"] = nn.rmsnorm_backward(dout, ffn_norm)
    dh = dsum + ffn_half_backward(dsum, ffn, grads)
    dsum, grads["attention_norm"] = nn.rmsnorm_backward(dh, attention_norm)
    return dsum + attention_half_backward(dsum, attention, grads), grads


def _pre_norm(skip, parallel):
    """The block of LLaMA with the skips multiplied by `skip`, or with both halves reading x (GPT-J, PaLM)."""

    def forward(x, params, cos, sin, config):
        n, attention_norm = nn.rmsnorm_forward(x, params["attention_norm"], config.norm_eps)
        a, attention = attention_half(n, params, cos, sin, config)
        h = skip * x + a
        m, ffn_norm = nn.rmsnorm_forward(x if parallel else h, params["ffn_norm"], config.norm_eps)
        f, ffn = ffn_half(m, params)
        return skip * h + f, (attention_norm, attention, ffn_norm, ffn)

    def backward(dout, cache):
        attention_norm, attention, ffn_norm, ffn = cache
        grads = {}
        dm, grads["ffn_norm"] = nn.rmsnorm_backward(ffn_half_backward(dout, ffn, grads), ffn_norm)
        dh = skip * dout + (0 if parallel else dm)
        dn, grads["attention_norm"] = nn.rmsnorm_backward(attention_half_backward(dh, attention, grads), attention_norm)
        return skip * dh + dn + (dm if parallel else 0), grads

    return forward, backward


no_skip_forward, no_skip_backward = _pre_norm(skip=0, parallel=False)
parallel_forward, parallel_backward = _pre_norm(skip=1, parallel=True)


# ---- another start ----
def init_all_alike(config, seed=0, dtype=np.float32, **stds):
    """init_params without GPT-2's rule: wo and w2 start as large as all other matrices."""
    params = nn.init_params(config, seed, dtype, **stds)
    grow = dtype(math.sqrt(2 * config.n_layers))
    return {name: p * grow if name.endswith((".wo", ".w2")) else p for name, p in params.items()}


def patch_of(name):
    """The patch of a block of this module, as lab.run takes it."""
    ways = ("backward",) if f"{name}_forward" not in globals() else ("forward", "backward")
    return {f"minillama.nn.model.block_{way}": f"lessons.museum.llama.{name}_{way}" for way in ways}
