"""Causal multi-head attention: each position takes a weighted mean of the values up to itself.

    scores = q k^T / sqrt(Dh)        (-inf above the diagonal)
    probs  = softmax(scores)         over the keys
    out    = probs v

Queries are taken a block at a time, and a block is multiplied by the keys up to its own end only. What lies further right has
probability 0, so leaving it out changes nothing, and saves almost half of the T x T scores [LLaMA §2.4]. Within the block the
diagonal still needs its mask.

Vaswani et al. 2017 (arXiv:1706.03762), Eq. 1; [LLaMA §2.2]. `flash.py` goes further and never keeps `probs`.
GPU twin: kernels/attention.py. Lesson: lessons/05_attention.ipynb.
"""
import math

import numpy as np


def _blocks(Tq, Tk, block):
    """Cut the queries into blocks: (rows, keys) slices. The queries are the last Tq of Tk positions, so that row i sees
    the keys 0 .. Tk - Tq + i, and a block needs the keys that its last row sees."""
    for start in range(0, Tq, block):
        end = min(start + block, Tq)
        yield slice(start, end), slice(0, Tk - Tq + end)


def attention_forward(q, k, v, block=64):
    """Attend. Tq < Tk is cached decoding: the queries are the last Tq positions.

    Args:
        q:    (B, Tq, H, Dh) float    queries, already rotated
        k, v: (B, Tk, H, Dh) float    keys (already rotated) and values, Tk >= Tq; equal in training
        block: int                    queries at a time; any value gives the same result except for rounding

    Returns:
        out:   (B, Tq, H, Dh) same dtype as q
        cache: (q, k, v, probs, block), with probs a list: one array (B, H, rows, keys) per block
    """
    out, probs = np.empty_like(q), []
    qh, kh, vh, outh = (a.swapaxes(1, 2) for a in (q, k, v, out))  # (B, H, T, Dh) views
    scale = 1 / math.sqrt(q.shape[-1])
    for rows, keys in _blocks(q.shape[1], k.shape[1], block):
        p = (qh[:, :, rows] * scale) @ kh[:, :, keys].swapaxes(2, 3)  # (B, H, rows, keys), scores so far
        n = p.shape[2]
        if n > 1:                                                # the last n keys are the block's own: its diagonal
            p[..., -n:] += np.triu(np.full((n, n), -np.inf, q.dtype), 1)
        p -= p.max(-1, keepdims=True)                            # exp cannot overflow; softmax is unchanged
        np.exp(p, out=p)
        p /= np.einsum("bhij->bhi", p)[..., None]
        np.matmul(p, vh[:, :, keys], out=outh[:, :, rows])
        probs.append(p)
    return out, (q, k, v, probs, block)


def attention_backward(dout, cache):
    """Gradients of attention_forward, for each head:

        dv      = probs^T dout
        dprobs  = dout v^T
        dscores = probs * (dprobs - rowsum(dprobs * probs))
        dq      = dscores k / sqrt(Dh)          dk = dscores^T q / sqrt(Dh)

    The row sum is there because a softmax row always sums to 1: raising one score lowers every other probability.
    Masked positions need no mask here: their probability is 0, and so is their gradient. The same key and value
    serve several blocks of queries, so dk and dv are sums over the blocks.

    Returns:
        dq: like q;  dk: like k;  dv: like v
    """
    q, k, v, probs, block = cache
    dq, dk, dv = np.empty_like(q), np.zeros_like(k), np.zeros_like(v)
    qh, kh, vh, douth, dqh, dkh, dvh = (a.swapaxes(1, 2) for a in (q, k, v, dout, dq, dk, dv))  # (B, H, T, Dh) views
    scale = 1 / math.sqrt(q.shape[-1])
    for (rows, keys), p in zip(_blocks(q.shape[1], k.shape[1], block), probs, strict=True):
        dvh[:, :, keys] += p.swapaxes(2, 3) @ douth[:, :, rows]
        ds = douth[:, :, rows] @ vh[:, :, keys].swapaxes(2, 3)   # (B, H, rows, keys), dprobs so far
        ds -= np.einsum("bhij,bhij->bhi", ds, p)[..., None]
        ds *= p
        ds *= scale
        np.matmul(ds, kh[:, :, keys], out=dqh[:, :, rows])
        dkh[:, :, keys] += ds.swapaxes(2, 3) @ qh[:, :, rows]
    return dq, dk, dv
