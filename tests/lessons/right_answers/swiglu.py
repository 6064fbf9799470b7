"""Right answers to the exercises of lesson 06, written in other ways than the solutions."""
import math

import numpy as np

from minillama import nn
from minillama.config import ModelConfig


def silu_two_branches(g):
    e = np.exp(-np.abs(g))
    s = np.where(g >= 0, 1 / (1 + e), e / (1 + e))
    out = g * s
    return out, out + s * (1 - out)


def silu_with_warning(g):
    s = 1 / (1 + np.exp(-g))                                     # overflows to 1/inf = 0, which is right
    return g * s, s + g * s * (1 - s)


def silu_loops(g):
    out, slope = np.zeros_like(g), np.zeros_like(g)
    for i, v in enumerate(g):
        s = 1 / (1 + math.exp(-v)) if v > 0 else math.exp(v) / (1 + math.exp(v))
        out[i], slope[i] = v * s, s * (1 + v - v * s)
    return [out, slope]


def silu_op(g):
    out, cache = nn.swiglu_forward(g, np.ones_like(g))
    return out, nn.swiglu_backward(np.ones_like(g), cache)[0]


def swiglu_backward_loops(dout, gate, up):
    dgate, dup = np.zeros_like(gate), np.zeros_like(up)
    for i in np.ndindex(gate.shape):
        e = math.exp(-gate[i])
        dup[i] = dout[i] * gate[i] / (1 + e)
        dgate[i] = dout[i] * up[i] * (1 / (1 + e) + gate[i] * e / (1 + e) ** 2)
    return dgate, dup


def swiglu_backward_tanh(dout, gate, up):
    t = np.tanh(gate / 2)
    return dout * up * (0.5 * (1 + t) + 0.25 * gate * (1 - t) * (1 + t)), dout * gate * 0.5 * (1 + t)


def swiglu_backward_op(dout, gate, up):
    return nn.swiglu_backward(dout, nn.swiglu_forward(gate, up)[1])


def _ffn_activations(x, w1, w3):
    gate, up = np.einsum("td,fd->tf", x, w1), np.einsum("td,fd->tf", x, w3)
    return gate, up, 1 / (1 + np.exp(-gate))


def ffn_backward_einsum(dout, x, w1, w2, w3):
    gate, up, s = _ffn_activations(x, w1, w3)
    silu = gate * s
    df = np.einsum("td,df->tf", dout, w2)
    da, db = df * up * (silu + s * (1 - silu)), df * silu
    dx = np.einsum("tf,fd->td", da, w1) + np.einsum("tf,fd->td", db, w3)
    return dx, np.einsum("tf,td->fd", da, x), np.einsum("td,tf->df", dout, silu * up), np.einsum("tf,td->fd", db, x)


def ffn_backward_tokens(dout, x, w1, w2, w3):
    dx, dw1, dw2, dw3 = np.zeros_like(x), np.zeros_like(w1), np.zeros_like(w2), np.zeros_like(w3)
    for t in range(len(x)):
        g, u = w1 @ x[t], w3 @ x[t]
        s = 1 / (1 + np.exp(-g))
        df = w2.T @ dout[t]
        dg, du = df * u * s * (1 + g - g * s), df * g * s
        dx[t] = w1.T @ dg + w3.T @ du
        dw1 += np.outer(dg, x[t])
        dw2 += np.outer(dout[t], g * s * u)
        dw3 += np.outer(du, x[t])
    return dx, dw1, dw2, dw3


def ffn_backward_stacked(dout, x, w1, w2, w3):
    both = np.concatenate([w1, w3])
    gate, up = np.split(x @ both.T, 2, -1)
    hidden, cache = nn.swiglu_forward(gate, up)
    d = np.concatenate(nn.swiglu_backward(dout @ w2, cache), -1)
    dw1, dw3 = np.split(d.T @ x, 2)
    return d @ both, dw1, dout.T @ hidden, dw3


def hidden_size_loops(dim, multiple_of):
    found = []
    for d in dim:
        h = 8 * int(d) // 3
        while h % multiple_of:
            h += 1
        found.append(h)
    return np.array(found)


def hidden_size_ceil(dim, multiple_of):
    return (np.ceil(8 * dim / 3 / multiple_of) * multiple_of).round().astype(int)


def hidden_size_negative(dim, multiple_of):
    return -(-(8 * dim // 3) // multiple_of) * multiple_of


def hidden_size_config(dim, multiple_of):
    rest = {"n_layers": 1, "n_heads": 1, "vocab_size": 1, "multiple_of": 2 * multiple_of}  # all doubled: a dim must be even
    return np.array([ModelConfig(dim=2 * int(d), **rest).hidden_dim // 2 for d in dim])


RIGHT = {
    "06.silu": [silu_two_branches, silu_with_warning, silu_loops, silu_op],
    "06.swiglu_backward": [swiglu_backward_loops, swiglu_backward_tanh, swiglu_backward_op],
    "06.ffn_backward": [ffn_backward_einsum, ffn_backward_tokens, ffn_backward_stacked],
    "06.hidden_size": [hidden_size_loops, hidden_size_ceil, hidden_size_negative, hidden_size_config],
}
