"""Right answers to the exercises of lesson 05, written in other ways than the solutions."""
import numpy as np

from minillama import nn


def split_heads_stack(x, n_heads):
    return np.stack(np.split(x, n_heads, -1), 1)


def split_heads_loops(x, n_heads):
    B, T, D = x.shape
    Dh = D // n_heads
    return [[[[x[b, t, h * Dh + i] for i in range(Dh)] for t in range(T)] for h in range(n_heads)] for b in range(B)]


def split_heads_transpose(x, n_heads):
    return np.einsum("bthd->bhtd", x.reshape(x.shape[0], x.shape[1], n_heads, x.shape[2] // n_heads))


def attention_forward_loops(q, k, v):
    out = np.zeros_like(q)
    for b, i, h in np.ndindex(*q.shape[:3]):
        scores = [q[b, i, h] @ k[b, j, h] / q.shape[3] ** 0.5 for j in range(i + 1)]
        weights = np.exp(scores) / np.exp(scores).sum()
        out[b, i, h] = sum(w * v[b, j, h] for j, w in enumerate(weights))
    return out


def attention_forward_matmul(q, k, v):
    q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))
    s = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1]) + np.triu(np.full((q.shape[2],) * 2, -1e30), 1)
    e = np.exp(s - s.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3)


def attention_forward_op(q, k, v):
    return nn.attention_forward(q, k, v, 2)[0]


def attention_forward_flash(q, k, v):
    return nn.flash_attention_forward(q, k, v, 2)[0]


def softmax_backward_jacobian(dp, p):
    J = np.einsum("bij,jl->bijl", p, np.eye(p.shape[-1])) - p[..., :, None] * p[..., None, :]
    return np.einsum("bij,bijl->bil", dp, J)


def softmax_backward_loops(dp, p):
    ds = np.zeros_like(p)
    for row in np.ndindex(p.shape[:-1]):
        for m in range(p.shape[-1]):
            ds[row][m] = p[row][m] * (dp[row][m] - sum(dp[row] * p[row]))
    return ds


def softmax_backward_einsum(dp, p):
    return p * dp - p * np.einsum("bij,bij->bi", p, dp)[:, :, None]


def attention_backward_op(dout, q, k, v):
    return nn.attention_backward(dout, nn.attention_forward(q, k, v, 2)[1])


def attention_backward_flash(dout, q, k, v):
    return nn.flash_attention_backward(dout, nn.flash_attention_forward(q, k, v, 2)[1])


def attention_backward_loops(dout, q, k, v):
    dq, dk, dv, root = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v), q.shape[3] ** 0.5
    for b, i, h in np.ndindex(*q.shape[:3]):
        s = k[b, :i + 1, h] @ q[b, i, h] / root
        p = np.exp(s) / np.exp(s).sum()
        dp = v[b, :i + 1, h] @ dout[b, i, h]
        ds = p * (dp - p @ dp) / root
        dq[b, i, h] = ds @ k[b, :i + 1, h]
        dk[b, :i + 1, h] += np.outer(ds, q[b, i, h])
        dv[b, :i + 1, h] += np.outer(p, dout[b, i, h])
    return dq, dk, dv


RIGHT = {
    "05.split_heads": [split_heads_stack, split_heads_loops, split_heads_transpose],
    "05.attention_forward": [attention_forward_loops, attention_forward_matmul, attention_forward_op, attention_forward_flash],
    "05.softmax_backward": [softmax_backward_jacobian, softmax_backward_loops, softmax_backward_einsum],
    "05.attention_backward": [attention_backward_op, attention_backward_flash, attention_backward_loops],
}
