"""Right answers to the exercises of lesson 03, written in other ways than the solutions."""
import numpy as np

from minillama import nn


def rmsnorm_forward_loops(x, weight, eps):
    out = np.empty_like(x)
    for index in np.ndindex(x.shape[:-1]):
        r = (sum(v * v for v in x[index]) / x.shape[-1] + eps) ** 0.5
        for i in range(x.shape[-1]):
            out[index][i] = weight[i] * x[index][i] / r
    return out


def rmsnorm_forward_einsum(x, weight, eps):
    rstd = (np.einsum("...i,...i->...", x, x) / x.shape[-1] + eps) ** -0.5
    return np.einsum("...i,...,i->...i", x, rstd, weight)


def rmsnorm_forward_norm(x, weight, eps):
    D = x.shape[-1]
    return weight * x * np.sqrt(D) / np.sqrt(np.linalg.norm(x, axis=-1, keepdims=True) ** 2 + D * eps)


def rmsnorm_forward_op(x, weight, eps):
    return nn.rmsnorm_forward(x, weight, eps)[0]


def rmsnorm_backward_loops(dout, x, weight, eps):
    D = x.shape[-1]
    dx, dweight = np.zeros_like(x), np.zeros_like(weight)
    for index in np.ndindex(x.shape[:-1]):
        r = np.sqrt((x[index] ** 2).sum() / D + eps)
        n = x[index] / r
        for i in range(D):
            dweight[i] += dout[index][i] * n[i]
            for j in range(D):
                dx[index][i] += dout[index][j] * weight[j] * ((i == j) - n[i] * n[j] / D) / r
    return dx, dweight


def rmsnorm_backward_einsum(dout, x, weight, eps):
    D = x.shape[-1]
    rstd = 1 / np.sqrt(np.einsum("bti,bti->bt", x, x) / D + eps)[..., None]
    along = np.einsum("bti,bti,i->bt", dout, x, weight)[..., None]
    return rstd * dout * weight - x * along * rstd**3 / D, np.einsum("bti,bti->i", dout, x * rstd)


def rmsnorm_backward_jacobian(dout, x, weight, eps):
    D = x.shape[-1]
    rms = np.sqrt((x**2).mean(-1) + eps)
    n = x / rms[..., None]
    J = (np.eye(D) - n[..., :, None] * n[..., None, :] / D) / rms[..., None, None]
    return [(J @ (dout * weight)[..., None])[..., 0], np.tensordot(dout, n, ((0, 1), (0, 1))).diagonal()]


def rmsnorm_backward_op(dout, x, weight, eps):
    return nn.rmsnorm_backward(dout, nn.rmsnorm_forward(x, weight, eps)[1])


RIGHT = {
    "03.rmsnorm_forward": [rmsnorm_forward_loops, rmsnorm_forward_einsum, rmsnorm_forward_norm, rmsnorm_forward_op],
    "03.rmsnorm_backward": [rmsnorm_backward_loops, rmsnorm_backward_einsum, rmsnorm_backward_jacobian, rmsnorm_backward_op],
}
