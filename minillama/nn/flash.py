"""Flash attention in NumPy: attention in tiles, with a softmax that never sees a complete row.

    for each tile of keys:   m' = max(m, rowmax(s))          s = q k^T / sqrt(Dh) of this tile
                             l' = exp(m - m') l + rowsum(exp(s - m'))
                             o' = exp(m - m') o + exp(s - m') v
    at the end:              out = o / l        lse = m + ln l

Only the tiles on or below the diagonal are visited, and no T x T array exists, forward or backward: backward rebuilds
each tile of probabilities as exp(s - lse). Milakov & Gimelshein 2018 (arXiv:1805.02867), online softmax; Dao et al. 2022
(arXiv:2205.14135), Algorithms 1 and 4; [LLaMA §2.4]. This is what the GPU kernel runs: kernels/attention.py.
Equal to attention.py except for rounding. Lesson: lessons/05_attention.ipynb.
"""
import math

import numpy as np


def _scores(q_tile, k_tile, first_query, first_key):
    """Masked, scaled scores of one tile: (B, H, tile, tile). Row r is position first_query + r, column c is first_key + c."""
    s = q_tile @ k_tile.swapaxes(2, 3) * (1 / math.sqrt(q_tile.shape[-1]))
    rows = first_query + np.arange(s.shape[2])[:, None]
    cols = first_key + np.arange(s.shape[3])
    s[..., cols > rows] = -np.inf
    return s


def flash_attention_forward(q, k, v, tile=64):
    """Causal attention in tiles of `tile` queries by `tile` keys.

    Args:
        q, k, v: (B, T, H, Dh) float    q and k already rotated
        tile:    int                    positions per tile; any value gives the same result except for rounding

    Returns:
        out:     (B, T, H, Dh) same dtype as q
        cache:   (q, k, v, out, lse, tile), with lse (B, H, T) the log-sum-exp of every score row: O(T), not O(T^2)
    """
    B, T, H, _ = q.shape
    qh, kh, vh = (a.swapaxes(1, 2) for a in (q, k, v))           # (B, H, T, Dh) views
    out = np.empty_like(q)
    lse = np.empty((B, H, T), q.dtype)
    for i in range(0, T, tile):
        qi = qh[:, :, i:i + tile]                                # (B, H, tile, Dh)
        m = np.full((*qi.shape[:3], 1), -np.inf, q.dtype)        # running maximum   (B, H, tile, 1)
        l = np.zeros_like(m)                                     # running sum       (B, H, tile, 1)
        o = np.zeros_like(qi)                                    # running output    (B, H, tile, Dh)
        for j in range(0, i + 1, tile):                          # tiles right of the diagonal are never touched
            s = _scores(qi, kh[:, :, j:j + tile], i, j)          # (B, H, tile, tile)
            m_new = np.maximum(m, s.max(-1, keepdims=True))
            p = np.exp(s - m_new)
            shrink = np.exp(m - m_new)                           # turns sums under the old maximum into sums under the new one
            l = shrink * l + p.sum(-1, keepdims=True)
            o = shrink * o + p @ vh[:, :, j:j + tile]
            m = m_new
        out.swapaxes(1, 2)[:, :, i:i + tile] = o / l
        lse[:, :, i:i + tile] = (m + np.log(l))[..., 0]
    return out, (q, k, v, out, lse, tile)


def flash_attention_backward(dout, cache):
    """Gradients of flash_attention_forward, tile by tile, with the equations of attention_backward:

        p  = exp(s - lse)                         (recomputed; the softmax needs no second maximum)
        dv += p^T dout          ds = p * (dout v^T - delta) / sqrt(Dh),    delta = rowsum(dout * out)
        dq += ds k              dk += ds^T q

    delta is the softmax's row sum rowsum(dprobs * probs), known before any tile is visited.

    Returns:
        dq, dk, dv: (B, T, H, Dh) each
    """
    q, k, v, out, lse, tile = cache
    T, Dh = q.shape[1], q.shape[3]
    qh, kh, vh, douth = (a.swapaxes(1, 2) for a in (q, k, v, dout))  # (B, H, T, Dh) views
    delta = (dout * out).sum(-1).swapaxes(1, 2)[..., None]       # (B, H, T, 1)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    dqh, dkh, dvh = (a.swapaxes(1, 2) for a in (dq, dk, dv))
    for i in range(0, T, tile):
        rows = slice(i, i + tile)
        for j in range(0, i + 1, tile):
            cols = slice(j, j + tile)
            p = np.exp(_scores(qh[:, :, rows], kh[:, :, cols], i, j) - lse[:, :, rows, None])  # (B, H, tile, tile)
            dp = douth[:, :, rows] @ vh[:, :, cols].swapaxes(2, 3)
            ds = p * (dp - delta[:, :, rows]) * (1 / math.sqrt(Dh))
            dvh[:, :, cols] += p.swapaxes(2, 3) @ douth[:, :, rows]
            dqh[:, :, rows] += ds @ kh[:, :, cols]
            dkh[:, :, cols] += ds.swapaxes(2, 3) @ qh[:, :, rows]
    return dq, dk, dv
