"""Right answers to the exercises of lesson 04, written in other ways than the solutions."""
import numpy as np

from minillama import nn


def rope_tables_loops(T, head_dim, theta):
    angles = np.array([[t / theta ** (2 * j / head_dim) for j in range(head_dim // 2)] for t in range(T)])
    return np.cos(angles), np.sin(angles)


def rope_tables_complex(T, head_dim, theta):
    turn = np.exp(1j * np.arange(T)[:, None] * theta ** -(np.arange(0, head_dim, 2) / head_dim))
    return turn.real, turn.imag


def rope_tables_exp(T, head_dim, theta):
    frequencies = np.exp(-np.log(theta) * np.linspace(0, 1, head_dim // 2, endpoint=False))
    angles = np.einsum("t,j->tj", np.arange(T), frequencies)
    return [np.cos(angles), np.sin(angles)]


def rope_forward_loops(x, cos, sin):
    out = x.copy()
    for b, t, h, j in np.ndindex(*x.shape[:3], x.shape[3] // 2):
        R = np.array([[cos[t, j], -sin[t, j]], [sin[t, j], cos[t, j]]])
        out[b, t, h, 2 * j:2 * j + 2] = R @ x[b, t, h, 2 * j:2 * j + 2]
    return out


def rope_forward_stack(x, cos, sin):
    cos, sin = cos[None, :, None], sin[None, :, None]
    a, b = x[..., ::2], x[..., 1::2]
    return np.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)


def rope_forward_repeat(x, cos, sin):
    cos, sin = np.repeat(cos, 2, -1)[:, None], np.repeat(sin, 2, -1)[:, None]
    swapped = np.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
    return x * cos + swapped * sin


def rope_forward_op(x, cos, sin):
    return nn.rope_forward(x, cos, sin)[0]


def rope_backward_loops(dout, cos, sin):
    return rope_forward_loops(dout, cos, -sin)


def rope_backward_einsum(dout, cos, sin):
    R = np.array([[cos, -sin], [sin, cos]])                      # (row, column, T, pair)
    pairs = dout.reshape(*dout.shape[:3], -1, 2)
    return np.einsum("rctj,bthjr->bthjc", R, pairs).reshape(dout.shape)


def rope_backward_complex(dout, cos, sin):
    pairs = dout[..., ::2] + 1j * dout[..., 1::2]
    turned = pairs * (cos - 1j * sin)[:, None]
    return np.stack([turned.real, turned.imag], -1).reshape(dout.shape)


def to_rotate_half_index(weight, n_heads):
    Dh = len(weight) // n_heads
    rows = [h * Dh + i for h in range(n_heads) for i in [*range(0, Dh, 2), *range(1, Dh, 2)]]
    return weight[rows]


def to_rotate_half_concatenate(weight, n_heads):
    return np.concatenate([np.concatenate([head[::2], head[1::2]]) for head in np.split(weight, n_heads)])


def to_rotate_half_matrix(weight, n_heads):
    Dh = len(weight) // n_heads
    P = np.zeros((Dh, Dh))
    P[np.arange(Dh), np.r_[0:Dh:2, 1:Dh:2]] = 1
    return np.kron(np.eye(n_heads), P) @ weight


RIGHT = {
    "04.rope_tables": [rope_tables_loops, rope_tables_complex, rope_tables_exp],
    "04.rope_forward": [rope_forward_loops, rope_forward_stack, rope_forward_repeat, rope_forward_op],
    "04.rope_backward": [rope_backward_loops, rope_backward_einsum, rope_backward_complex],
    "04.to_rotate_half": [to_rotate_half_index, to_rotate_half_concatenate, to_rotate_half_matrix],
}
