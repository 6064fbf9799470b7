"""Right answers to the exercises of lesson 07, written in other ways than the solutions."""
import functools
import math

import numpy as np

from minillama import nn
from minillama.config import ModelConfig


def residual_backward_product(dout, jacobians):
    L, eye = len(jacobians), np.eye(len(dout))
    whole = [functools.reduce(lambda a, J: (eye + J) @ a, jacobians[first:], eye) for first in range(L + 1)]
    return np.array([dout @ J for J in whole])


def residual_backward_recursive(dout, jacobians):
    if not len(jacobians):
        return dout[None]
    later = residual_backward_recursive(dout, jacobians[1:])
    return np.concatenate((later[:1] + later[:1] @ jacobians[0], later))


def residual_backward_loops(dout, jacobians):
    L, D = len(jacobians), len(dout)
    d = np.zeros((L + 1, D))
    d[L] = dout
    for layer in range(L - 1, -1, -1):
        for j in range(D):
            d[layer, j] = d[layer + 1, j] + sum(d[layer + 1, i] * jacobians[layer, i, j] for i in range(D))
    return d


def block_forward_in_place(x, params, n_heads, ops):
    heads, stream = (len(x), x.shape[1], n_heads, x.shape[2] // n_heads), x.copy()
    n = ops.rmsnorm(stream, params["attention_norm"])
    q, k, v = (ops.linear(n, params[name]).reshape(heads) for name in ("wq", "wk", "wv"))
    stream += ops.linear(ops.attention(ops.rope(q), ops.rope(k), v).reshape(stream.shape), params["wo"])
    h = stream.copy()
    m = ops.rmsnorm(stream, params["ffn_norm"])
    stream += ops.linear(ops.swiglu(*(ops.linear(m, params[name]) for name in ("w1", "w3"))), params["w2"])
    return h, stream


def block_forward_written_out(x, params, n_heads, ops):
    B, T, D = x.shape

    def heads(y):
        return np.stack(np.split(y, n_heads, -1), 2)

    n = ops.rmsnorm(x, params["attention_norm"])
    q, k, v = (heads(np.einsum("btd,od->bto", n, params[name])) for name in ("wq", "wk", "wv"))
    a = ops.attention(ops.rope(q), ops.rope(k), v)
    h = x + np.concatenate([a[:, :, head] for head in range(n_heads)], -1) @ params["wo"].T
    m = ops.rmsnorm(h, params["ffn_norm"])
    gate, up = m @ params["w1"].T, m @ params["w3"].T
    return h, h + (gate / (1 + np.exp(-gate)) * up) @ params["w2"].T


def block_forward_fused(x, params, n_heads, ops):
    """One product for q, k and v, one for gate and up, as fast code does it."""
    qkv = ops.linear(ops.rmsnorm(x, params["attention_norm"]), np.concatenate([params[name] for name in ("wq", "wk", "wv")]))
    q, k, v = np.moveaxis(qkv.reshape(*x.shape[:2], 3, n_heads, -1), 2, 0)
    h = ops.linear(ops.attention(ops.rope(q), ops.rope(k), v).reshape(x.shape), params["wo"]) + x
    both = ops.linear(ops.rmsnorm(h, params["ffn_norm"]), np.concatenate((params["w1"], params["w3"])))
    return [h, ops.linear(ops.swiglu(*np.split(both, 2, -1)), params["w2"]) + h]


def block_backward_in_place(dout, back):
    d = dout.copy()
    dgate, dup = back.swiglu(back.w2(d))
    dm = back.w1(dgate)
    dm += back.w3(dup)
    d += back.ffn_norm(dm)
    dh = d.copy()
    dq, dk, dv = back.attention(back.wo(d))
    dn = back.wv(dv)
    dn += back.wk(back.rope(dk))
    dn += back.wq(back.rope(dq))
    d += back.attention_norm(dn)
    return dm, dh, dn, d


def block_backward_sums(dout, back):
    dm = sum(way(d) for way, d in zip((back.w1, back.w3), back.swiglu(back.w2(dout))))
    dh = np.add(back.ffn_norm(dm), dout)
    turned = (back.rope, back.rope, np.asarray)
    dn = sum(way(turn(d)) for way, turn, d in zip((back.wq, back.wk, back.wv), turned, back.attention(back.wo(dh))))
    return [dm, dh, dn, np.sum([dh, back.attention_norm(dn)], 0)]


def block_backward_linear(dout, back):
    """Every backward is linear in what it is given: the skip and the branch may go through wo and attention one by one."""
    dgate, dup = back.swiglu(back.w2(dout))
    dm = back.w3(dup) + back.w1(dgate)
    branch = back.ffn_norm(dm)
    dn = 0
    for part in (dout, branch):
        dq, dk, dv = back.attention(back.wo(part))
        dn = dn + back.wq(back.rope(dq)) + back.wk(back.rope(dk)) + back.wv(dv)
    return dm, dout + branch, dn, dout + branch + back.attention_norm(dn)


def count_params_shapes(dim, n_layers, vocab_size, multiple_of):
    config = ModelConfig(dim=dim, n_layers=n_layers, n_heads=1, vocab_size=vocab_size, multiple_of=multiple_of)
    return config.hidden_dim, sum(math.prod(shape) for shape in nn.param_shapes(config).values())


def count_params_loop(dim, n_layers, vocab_size, multiple_of):
    hidden = 0
    while hidden < int(2 * (4 * dim) / 3):
        hidden += multiple_of
    params = 2 * vocab_size * dim + dim
    for _ in range(n_layers):
        params += dim + 4 * dim**2 + dim + 3 * hidden * dim
    return hidden, params


def count_params_negative_floor(dim, n_layers, vocab_size, multiple_of):
    hidden = -(-(8 * dim // 3) // multiple_of) * multiple_of
    return np.array(hidden), dim * (2 * vocab_size + 1 + n_layers * (4 * dim + 3 * hidden + 2))


RIGHT = {
    "07.residual_backward": [residual_backward_product, residual_backward_recursive, residual_backward_loops],
    "07.block_forward": [block_forward_in_place, block_forward_written_out, block_forward_fused],
    "07.block_backward": [block_backward_in_place, block_backward_sums, block_backward_linear],
    "07.count_params": [count_params_shapes, count_params_loop, count_params_negative_floor],
}
