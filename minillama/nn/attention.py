"""Causal multi-head attention: each position takes a weighted mean of the values up to itself.

    scores = q k^T / sqrt(Dh)        (-inf above the diagonal)
    probs  = softmax(scores)         over the keys
    out    = probs v

Vaswani et al. 2017 (arXiv:1706.03762), Eq. 1; [LLaMA §2.2]. `flash.py` computes the same without the T x T array.
GPU twin: kernels/attention.py. Lesson: lessons/05_attention.ipynb.
"""
import math

import numpy as np


def attention_forward(q, k, v):
    """Attend. The queries are the last Tq of the Tk positions, so that cached decoding (Tq < Tk) is the same function.

    Args:
        q:    (B, Tq, H, Dh) float    queries, already rotated
        k, v: (B, Tk, H, Dh) float    keys (already rotated) and values, Tk >= Tq; equal in training

    Returns:
        out:   (B, Tq, H, Dh) same dtype as q
        cache: (q, k, v, probs), with probs (B, H, Tq, Tk)
    """
    (B, Tq, H, Dh), Tk = q.shape, k.shape[1]
    qh, kh, vh = (a.swapaxes(1, 2) for a in (q, k, v))           # (B, H, T, Dh) views
    probs = (qh * (1 / math.sqrt(Dh))) @ kh.swapaxes(2, 3)       # (B, H, Tq, Tk), scores so far
    probs += np.triu(np.full((Tq, Tk), -np.inf, q.dtype), 1 + Tk - Tq)  # position i sees keys 0 .. i
    probs -= probs.max(-1, keepdims=True)                        # exp cannot overflow; softmax is unchanged
    np.exp(probs, out=probs)
    probs /= probs.sum(-1, keepdims=True)
    out = np.empty((B, Tq, H, Dh), q.dtype)
    np.matmul(probs, vh, out=out.swapaxes(1, 2))
    return out, (q, k, v, probs)


def attention_backward(dout, cache):
    """Gradients of attention_forward, for each head:

        dv      = probs^T dout
        dprobs  = dout v^T
        dscores = probs * (dprobs - rowsum(dprobs * probs))
        dq      = dscores k / sqrt(Dh)          dk = dscores^T q / sqrt(Dh)

    The row sum is there because a softmax row always sums to 1: raising one score lowers every other probability.
    It equals rowsum(dout * out), which is Dh instead of Tk terms (Dao et al. 2022, arXiv:2205.14135, Appendix B).
    Masked positions need no mask here: their probability is 0, and so is their gradient.

    Returns:
        dq: like q;  dk: like k;  dv: like v
    """
    q, k, v, probs = cache
    qh, kh, vh, douth = (a.swapaxes(1, 2) for a in (q, k, v, dout))  # (B, H, T, Dh) views
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    np.matmul(probs.swapaxes(2, 3), douth, out=dv.swapaxes(1, 2))
    dscores = douth @ vh.swapaxes(2, 3)                          # (B, H, Tq, Tk), dprobs so far
    dscores -= np.einsum("bhij,bhij->bhi", dscores, probs)[..., None]
    dscores *= probs
    dscores *= 1 / math.sqrt(q.shape[-1])
    np.matmul(dscores, kh, out=dq.swapaxes(1, 2))
    np.matmul(dscores.swapaxes(2, 3), qh, out=dk.swapaxes(1, 2))
    return dq, dk, dv
