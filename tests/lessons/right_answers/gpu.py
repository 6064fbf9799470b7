"""Right answers to the exercises of lesson 15, written in other ways than the solutions."""
import math

import numpy as np


def launch_rmsnorm_by_hand(x, weight, N, D, x_stride, eps, BLOCK, tl):
    """No kernel at all."""
    rows = x.astype(float)[np.arange(N)[:, None] * x_stride + np.arange(D)]
    return rows * weight / np.sqrt((rows * rows).mean(-1, keepdims=True) + eps)


def launch_rmsnorm_two_rows(x, weight, N, D, x_stride, eps, BLOCK, tl):
    """Two rows per program, another order of arguments, and a mask in both axes."""

    def kernel(out_ptr, weight_ptr, x_ptr, N, D, x_stride, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
        row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
        inside = (row < N)[:, None] & (column < D)[None, :]
        x = tl.load(x_ptr + (row[:, None] * x_stride + column[None, :]), inside, other=0.0).to(tl.float32)
        rstd = tl.rsqrt(tl.sum(x * x, 1) / D + eps)
        weight = tl.load(weight_ptr + column, column < D)        # undefined lanes that are never stored
        tl.store(out_ptr + row[:, None] * D + column[None, :], x * rstd[:, None] * weight[None, :], inside)

    out = tl.empty(N, D)
    tl.launch(kernel, tl.cdiv(N, 2), out, weight, x, N, D, x_stride, eps, 2, BLOCK)
    return out


def launch_rmsnorm_two_passes(x, weight, N, D, x_stride, eps, BLOCK, tl):
    """One kernel for the statistics, a second one, a program per number, for the rest."""

    def statistics(x_ptr, rstd_ptr, D, x_stride, eps):
        row, total = tl.program_id(0), 0.0
        for i in tl.range(0, D):
            value = tl.load(x_ptr + row * x_stride + i).to(tl.float32)
            total = total + value * value
        tl.store(rstd_ptr + row, 1 / tl.sqrt(total / D + eps))

    def scale(x_ptr, weight_ptr, rstd_ptr, out_ptr, D, x_stride):
        at = tl.program_id(0)
        row, i = at // D, at % D
        value = tl.load(x_ptr + row * x_stride + i).to(tl.float32)
        tl.store(out_ptr + at, value * tl.load(rstd_ptr + row) * tl.load(weight_ptr + i))

    rstd, out = tl.empty(N), tl.empty(N * D)
    tl.launch(statistics, (N,), x, rstd, D, x_stride, eps)
    tl.launch(scale, (N * D,), x, weight, rstd, out, D, x_stride)
    return out.reshape(N, D)


def launch_dweight_by_hand(dout, x, rstd, N, D, G, BLOCK, tl):
    return np.einsum("ni,ni,n->i", dout, x, rstd)


def launch_dweight_atomics(dout, x, rstd, N, D, G, BLOCK, tl):
    """One sum, which the hardware lets one program after the other add to."""

    def kernel(dout_ptr, x_ptr, rstd_ptr, dweight_ptr, N, D, G, BLOCK: tl.constexpr):
        column = tl.arange(0, BLOCK)
        for row in tl.range(tl.program_id(0), N, G):
            product = tl.load(dout_ptr + row * D + column, column < D) * tl.load(x_ptr + row * D + column, column < D)
            tl.atomic_add(dweight_ptr + column, product * tl.load(rstd_ptr + row), column < D)

    dweight = np.zeros(D)
    tl.launch(kernel, G, dout, x, rstd, dweight, N, D, G, BLOCK)
    return dweight


def launch_dweight_columns(dout, x, rstd, N, D, G, BLOCK, tl):
    """A program per channel: no two of them write to one place."""

    def kernel(dout_ptr, x_ptr, rstd_ptr, dweight_ptr, N, D, ROWS: tl.constexpr):
        i, row = tl.program_id(0), tl.arange(0, ROWS)
        inside = row < N
        n = tl.load(x_ptr + row * D + i, inside, other=0.0) * tl.load(rstd_ptr + row, inside, other=0.0)
        tl.store(dweight_ptr + i, tl.sum(tl.load(dout_ptr + row * D + i, inside, other=0.0) * n, 0))

    dweight = tl.empty(D)
    tl.launch(kernel, D, dout, x, rstd, dweight, N, D, 1 << (N - 1).bit_length())
    return dweight


def launch_dweight_second_kernel(dout, x, rstd, N, D, G, BLOCK, tl):
    """Neighbouring rows per program, and the partial sums added by a second kernel."""

    def kernel(dout_ptr, x_ptr, rstd_ptr, partial_ptr, N, D, EACH, BLOCK: tl.constexpr):
        g, column = tl.program_id(0), tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), tl.float32)
        for k in tl.range(0, EACH):
            row = g * EACH + k
            inside = (column < D) & (row < N)
            n = tl.load(x_ptr + row * D + column, inside, other=0.0) * tl.load(rstd_ptr + row, row < N, other=0.0)
            total += tl.load(dout_ptr + row * D + column, inside, other=0.0) * n
        tl.store(partial_ptr + g * D + column, total, column < D)

    def add(partial_ptr, dweight_ptr, G, D, BLOCK: tl.constexpr):
        column = tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), tl.float32)
        for g in tl.range(0, G):
            total += tl.load(partial_ptr + g * D + column, column < D, other=0.0)
        tl.store(dweight_ptr + column, total, column < D)

    partial, dweight = tl.empty(G, D), tl.empty(D)
    tl.launch(kernel, G, dout, x, rstd, partial, N, D, -(-N // G), BLOCK)
    tl.launch(add, 1, partial, dweight, G, D, BLOCK)
    return dweight


def flash_step_loops(m, l, o, s, v):
    m_new, l_new, o_new = np.empty_like(m), np.empty_like(l), np.empty_like(o)
    for r in range(len(m)):
        m_new[r] = max(m[r], *s[r])
        shrink = math.exp(m[r] - m_new[r])
        p = [math.exp(x - m_new[r]) for x in s[r]]
        l_new[r] = shrink * l[r] + sum(p)
        o_new[r] = shrink * o[r] + sum(p[k] * v[k] for k in range(len(p)))
    return m_new, l_new, o_new


def flash_step_one_key_at_a_time(m, l, o, s, v):
    m, l, o = m.copy(), l.copy(), o.copy()
    for key in range(s.shape[1]):
        m_new = np.where(s[:, key] > m, s[:, key], m)
        old, new = np.exp(m - m_new), np.exp(s[:, key] - m_new)
        m, l, o = m_new, old * l + new, old[:, None] * o + new[:, None] * v[key]
    return m, l, o


def flash_step_by_columns(m, l, o, s, v):
    """The old state is one more key, of score m, whose value has l in front of its channels."""
    scores = np.concatenate([m[:, None], s], 1)
    m_new = scores.max(1)
    weights = np.exp(scores - m_new[:, None])
    old = np.concatenate([l[:, None], o], 1)
    new = weights[:, 1:] @ np.concatenate([np.ones((len(v), 1)), v], 1)
    both = weights[:, :1] * old + new
    return m_new, both[:, 0], both[:, 1:]


RIGHT = {
    "15.launch_rmsnorm": [launch_rmsnorm_by_hand, launch_rmsnorm_two_rows, launch_rmsnorm_two_passes],
    "15.launch_dweight": [launch_dweight_by_hand, launch_dweight_atomics, launch_dweight_columns, launch_dweight_second_kernel],
    "15.flash_step": [flash_step_loops, flash_step_one_key_at_a_time, flash_step_by_columns],
}
