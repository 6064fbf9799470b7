"""Right answers to the exercises of lesson 02, written in other ways than the solutions."""
import numpy as np

from minillama import nn


def linear_backward_loops(dout, x, weight):
    dx, dweight = np.zeros_like(x), np.zeros_like(weight)
    for b, t, o, i in np.ndindex(*dout.shape, x.shape[-1]):
        dx[b, t, i] += dout[b, t, o] * weight[o, i]
        dweight[o, i] += dout[b, t, o] * x[b, t, i]
    return dx, dweight


def linear_backward_einsum(dout, x, weight):
    return np.einsum("bto,oi->bti", dout, weight), np.einsum("bto,bti->oi", dout, x)


def linear_backward_sum(dout, x, weight):
    return dout @ weight, (dout.swapaxes(1, 2) @ x).sum(0)


def linear_backward_op(dout, x, weight):
    return nn.linear_backward(dout, (x, weight))


def cross_entropy_backward_onehot(logits, targets):
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return (p - np.eye(logits.shape[1])[targets]) / len(logits)


def cross_entropy_backward_loops(logits, targets):
    out = []
    for z, y in zip(logits, targets):
        p = [1 / sum(np.exp(u - v) for u in z) for v in z]
        out.append([(p[v] - (v == y)) / len(logits) for v in range(len(z))])
    return np.array(out)


def cross_entropy_backward_op(logits, targets):
    return nn.cross_entropy_backward(1.0, nn.cross_entropy_forward(logits[None], targets[None])[1])[0]


def numerical_gradient_in_place(loss, x, h):
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        kept = x[index]
        x[index] = kept + h
        above = loss(x)
        x[index] = kept - h
        gradient[index] = (above - loss(x)) / (2 * h)
        x[index] = kept
    return gradient


def numerical_gradient_flat(loss, x, h):
    nudges = h * np.eye(x.size).reshape(x.size, *x.shape)
    return np.array([(loss(x + nudge) - loss(x - nudge)) / h / 2 for nudge in nudges]).reshape(x.shape)


def numerical_gradient_nditer(loss, x, h):
    gradient, walk = np.zeros_like(x), np.nditer(x, flags=["multi_index"])
    for _ in walk:
        e = np.zeros_like(x)
        e[walk.multi_index] = h
        gradient[walk.multi_index] = 0.5 / h * loss(x + e) - 0.5 / h * loss(x - e)
    return gradient


def relative_error_loops(analytic, numeric):
    worst = max(abs(a - n) for a, n in zip(analytic.flat, numeric.flat))
    return worst / max(abs(n) for n in numeric.flat)


def relative_error_norm(analytic, numeric):
    return np.linalg.norm((analytic - numeric).ravel(), np.inf) / np.linalg.norm(numeric.ravel(), np.inf)


def relative_error_scaled(analytic, numeric):
    scale = max(numeric.max(), -numeric.min())
    return float(np.max(np.abs(analytic / scale - numeric / scale)))


RIGHT = {
    "02.linear_backward": [linear_backward_loops, linear_backward_einsum, linear_backward_sum, linear_backward_op],
    "02.cross_entropy_backward": [cross_entropy_backward_onehot, cross_entropy_backward_loops, cross_entropy_backward_op],
    "02.numerical_gradient": [numerical_gradient_in_place, numerical_gradient_flat, numerical_gradient_nditer],
    "02.relative_error": [relative_error_loops, relative_error_norm, relative_error_scaled],
}
