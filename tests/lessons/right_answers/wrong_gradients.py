"""Right answers to the exercises of lesson 08, written in other ways than the solutions."""
import numpy as np


def flat(tensors):
    return np.concatenate([np.ravel(tensors[name]) for name in sorted(tensors)])


def cosine_flat(right, wrong):
    a, b = flat(right), flat(wrong)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def cosine_loops(right, wrong):
    dot = aa = bb = 0.0
    for name in wrong:
        for a, b in zip(right[name].flat, wrong[name].flat):
            dot, aa, bb = dot + a * b, aa + a * a, bb + b * b
    return float(dot / (aa * bb) ** 0.5)


def cosine_unit(right, wrong):
    unit = lambda g: {k: v / np.sqrt(sum(np.vdot(a, a) for a in g.values())) for k, v in g.items()}  # noqa: E731
    a, b = unit(right), unit(wrong)
    return np.array([np.vdot(a[k], b[k]) for k in a]).sum()


def slopes_flat(loss, params, grads, u, h):
    values = [loss({k: params[k] + step * u[k] for k in params}) for step in (h, -h)]
    return flat(grads) @ flat(u), (values[0] - values[1]) / h / 2


def slopes_in_place(loss, params, grads, u, h):
    moved = {k: v.copy() for k, v in params.items()}
    for k in moved:
        moved[k] += h * u[k]
    above = loss(moved)
    for k in moved:
        moved[k] -= 2 * h * u[k]
    return [sum(np.vdot(grads[k], u[k]) for k in u), (above - loss(moved)) / (2 * h)]


def slopes_einsum(loss, params, grads, u, h):
    at = lambda t: loss({k: params[k] + t * u[k] for k in u})  # noqa: E731
    return sum(float(np.einsum("i,i->", grads[k].ravel(), u[k].ravel())) for k in u), 0.5 * (at(h) - at(-h)) / h


def first_wrong_loops(errors, tolerance):
    found = []
    for report in errors:
        found.append(next((i for i, error in enumerate(report) if not error <= tolerance), -1))
    return found


def first_wrong_nonzero(errors, tolerance):
    index = np.full(len(errors), -1)
    rows, columns = np.nonzero((errors > tolerance) | np.isnan(errors))
    for row, column in zip(rows[::-1], columns[::-1]):
        index[row] = column
    return index


def first_wrong_floats(errors, tolerance):
    wrong = np.logical_not(errors <= tolerance).astype(float)
    columns = np.where(wrong > 0, np.arange(errors.shape[1]), np.inf).min(1)
    return np.where(np.isinf(columns), -1.0, columns)


RIGHT = {
    "08.cosine": [cosine_flat, cosine_loops, cosine_unit],
    "08.slopes": [slopes_flat, slopes_in_place, slopes_einsum],
    "08.first_wrong": [first_wrong_loops, first_wrong_nonzero, first_wrong_floats],
}
