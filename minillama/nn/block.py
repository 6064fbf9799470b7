"""One transformer layer: attention, then the feed-forward, each on a normalised copy of the residual stream.

    h   = x + wo attention(rope(wq n), rope(wk n), wv n)      n = rmsnorm(x)
    out = h + w2 swiglu(w1 m, w3 m)                           m = rmsnorm(h)

Pre-normalisation: x itself is never normalised, so gradients pass both `+` unchanged [LLaMA §2.2].
GPU twin: kernels/block.py. Lesson: lessons/07_llama.ipynb.
"""
from .attention import attention_backward, attention_forward
from .linear import linear_backward, linear_forward
from .rmsnorm import rmsnorm_backward, rmsnorm_forward
from .rope import rope_backward, rope_forward
from .swiglu import swiglu_backward, swiglu_forward


def block_forward(x, params, cos, sin, config, kv=None):
    """Run one layer.

    Args:
        x:        (B, T, D) float       residual stream
        params:   dict of 9             attention_norm (D,), wq wk wv wo (D, D), ffn_norm (D,), w1 gate (F, D), w2 down (D, F), w3 up (F, D)
        cos, sin: (T, Dh/2) float       rope_tables rows of x's positions
        config:   ModelConfig           n_heads, head_dim, norm_eps
        kv:       optional function     given this step's rotated k and v, returns the k and v to attend to (cached decoding)

    Returns:
        out:      (B, T, D) same dtype as x
        cache:    one entry per op, in forward's order
    """
    heads = (*x.shape[:2], config.n_heads, config.head_dim)      # (B, T, H, Dh)

    n, attention_norm = rmsnorm_forward(x, params["attention_norm"], config.norm_eps)
    q, wq = linear_forward(n, params["wq"])
    k, wk = linear_forward(n, params["wk"])
    v, wv = linear_forward(n, params["wv"])
    q, rope_q = rope_forward(q.reshape(heads), cos, sin)
    k, rope_k = rope_forward(k.reshape(heads), cos, sin)
    v = v.reshape(heads)
    if kv is not None:
        k, v = kv(k, v)                                          # (B, T so far, H, Dh) each
    a, attention = attention_forward(q, k, v)
    a, wo = linear_forward(a.reshape(x.shape), params["wo"])
    h = x + a

    m, ffn_norm = rmsnorm_forward(h, params["ffn_norm"], config.norm_eps)
    gate, w1 = linear_forward(m, params["w1"])
    up, w3 = linear_forward(m, params["w3"])
    f, swiglu = swiglu_forward(gate, up)
    f, w2 = linear_forward(f, params["w2"])
    out = h + f

    cache = (attention_norm, wq, wk, wv, rope_q, rope_k, attention, wo, ffn_norm, w1, w3, swiglu, w2)
    return out, cache


def block_backward(dout, cache):
    """Gradients of block_forward: its lines in reverse order. A `+` stands where forward used a value more than once:
    m in w1 and w3, n in wq, wk and wv, and h and x in a residual and in a norm.

    Returns:
        dx:    (B, T, D) like x
        grads: dict with the keys of params
    """
    attention_norm, wq, wk, wv, rope_q, rope_k, attention, wo, ffn_norm, w1, w3, swiglu, w2 = cache
    grads = {}

    df, grads["w2"] = linear_backward(dout, w2)
    dgate, dup = swiglu_backward(df, swiglu)
    dm_gate, grads["w1"] = linear_backward(dgate, w1)
    dm_up, grads["w3"] = linear_backward(dup, w3)
    dh, grads["ffn_norm"] = rmsnorm_backward(dm_gate + dm_up, ffn_norm)
    dh = dout + dh

    da, grads["wo"] = linear_backward(dh, wo)
    heads = attention[0].shape                                   # (B, T, H, Dh)
    dq, dk, dv = attention_backward(da.reshape(heads), attention)
    dq = rope_backward(dq, rope_q)
    dk = rope_backward(dk, rope_k)
    dn_q, grads["wq"] = linear_backward(dq.reshape(da.shape), wq)
    dn_k, grads["wk"] = linear_backward(dk.reshape(da.shape), wk)
    dn_v, grads["wv"] = linear_backward(dv.reshape(da.shape), wv)
    dx, grads["attention_norm"] = rmsnorm_backward(dn_q + dn_k + dn_v, attention_norm)
    return dh + dx, grads
