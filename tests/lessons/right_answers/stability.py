"""Right answers to the exercises of lesson 10, written in other ways than the solutions."""
import math

import numpy as np

from minillama import optim


def warmup_rate_loops(step, peak, warmup_steps):
    return [peak if s >= warmup_steps else peak * s / warmup_steps for s in step.tolist()]


def warmup_rate_where(step, peak, warmup_steps):
    return np.where(step < warmup_steps, step * (peak / warmup_steps), peak)


def warmup_rate_interp(step, peak, warmup_steps):
    return np.interp(step, [0, warmup_steps], [0.0, peak])


def warmup_rate_op(step, peak, warmup_steps):
    return [optim.learning_rate(int(s), peak, 10**9, warmup_steps, final_fraction=1.0) for s in step]


def clip_grad_norm_flat(steps, max_norm):
    flat = np.array([np.concatenate([g.ravel() for g in grads.values()]) for grads in steps])
    norms = np.linalg.norm(flat, axis=1)
    return norms, flat / np.maximum(1, norms / max_norm)[:, None]


def clip_grad_norm_loops(steps, max_norm):
    norms, clipped = [], []
    for grads in steps:
        entries = [float(x) for g in grads.values() for x in g.flat]
        norm = math.sqrt(math.fsum(x * x for x in entries))
        norms.append(norm)
        clipped.append([x * max_norm / norm for x in entries] if norm > max_norm else entries)
    return norms, clipped


def clip_grad_norm_of_norms(steps, max_norm):
    norms = [np.hypot.reduce([np.linalg.norm(g) for g in grads.values()]) for grads in steps]
    flat = [np.r_[tuple(g.ravel() for g in grads.values())] for grads in steps]
    return np.array(norms), np.stack([g * np.clip(max_norm / n, 0, 1) for g, n in zip(flat, norms)])


def clip_grad_norm_op(steps, max_norm):
    flat = [np.concatenate([np.ravel(g) for g in grads.values()]) for grads in steps]
    return [optim.clip_grad_norm(f, max_norm) for f in flat], flat


def adamw_update_average(micro, scored, m, v, step, lr, max_norm):
    g = np.average(micro, axis=0, weights=scored)
    g = g / max(1, np.linalg.norm(g) / max_norm)
    m, v = m + 0.1 * (g - m), v + 0.05 * (g * g - v)
    return lr / (1 - 0.9**step) * m / (np.sqrt(v) / math.sqrt(1 - 0.95**step) + 1e-8)


def adamw_update_loops(micro, scored, m, v, step, lr, max_norm):
    g = [sum(n * row[i] for n, row in zip(scored, micro)) / sum(scored) for i in range(len(m))]
    norm = math.sqrt(sum(x * x for x in g))
    out = []
    for x, a, b in zip(g, m, v):
        x = x * max_norm / norm if norm > max_norm else x
        a, b = 0.9 * a + 0.1 * x, 0.95 * b + 0.05 * x * x
        out.append(lr * a / (1 - 0.9**step) / (math.sqrt(b / (1 - 0.95**step)) + 1e-8))
    return np.array(out)


def adamw_update_op(micro, scored, m, v, step, lr, max_norm):
    param, grad = np.zeros_like(m), scored @ micro / scored.sum()
    optim.clip_grad_norm(grad, max_norm)
    optim.adamw_step(param, grad, m.copy(), v.copy(), step, lr, weight_decay=0.0)
    return -param


def first_broken_backward(reports):
    found = []
    for grads in reports:
        names = list(grads)
        name = next((n for n in reversed(names) if not np.isfinite(grads[n].sum())), None)
        found.append(-1 if name is None else names.index(name))
    return found


def first_broken_nonzero(reports):
    return np.array([np.r_[-1, np.flatnonzero([(np.isnan(g) | np.isinf(g)).any() for g in grads.values()])][-1] for grads in reports])


def first_broken_loops(reports):
    index = np.full(len(reports), -1.0)
    for row, grads in enumerate(reports):
        for k, g in enumerate(grads.values()):
            if any(not math.isfinite(x) for x in g.flat):
                index[row] = k
    return index


RIGHT = {
    "10.warmup_rate": [warmup_rate_loops, warmup_rate_where, warmup_rate_interp, warmup_rate_op],
    "10.clip_grad_norm": [clip_grad_norm_flat, clip_grad_norm_loops, clip_grad_norm_of_norms, clip_grad_norm_op],
    "10.adamw_update": [adamw_update_average, adamw_update_loops, adamw_update_op],
    "10.first_broken": [first_broken_backward, first_broken_nonzero, first_broken_loops],
}
