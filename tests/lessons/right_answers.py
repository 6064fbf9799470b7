"""Right answers to the exercises, written in other ways than the solutions: loops, einsum, other algebra, the project's own ops.

Every one must pass its check, or learners are told that they are wrong when they are not.
"""

import numpy as np
import right_answers_10
import right_answers_11

from minillama import nn
from minillama.optim import adamw_step


# ---- 02 ----
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


# ---- 03 ----
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


# ---- 04 ----
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


# ---- 05 ----
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


# ---- 08 ----
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


# ---- 09 ----
def running_mean_sum(gradients, beta):
    weights = (1 - beta) * beta ** np.arange(len(gradients))[::-1]
    return weights @ gradients, weights @ gradients / weights.sum()


def running_mean_recursive(gradients, beta):
    if not len(gradients):
        return np.zeros(gradients.shape[1]), np.zeros(gradients.shape[1])
    before, _ = running_mean_recursive(gradients[:-1], beta)
    m = before + (1 - beta) * (gradients[-1] - before)
    return m, m / (1 - np.exp(len(gradients) * np.log(beta)))


def running_mean_loops(gradients, beta):
    m, left = [0.0] * gradients.shape[1], 1.0
    for row in gradients:
        left *= beta
        m = [beta * a + (1 - beta) * g for a, g in zip(m, row)]
    return np.array(m), np.array([a / (1 - left) for a in m])


def adamw_step_op(param, grad, m, v, step, lr, beta1, beta2, eps, weight_decay):
    param, m, v = param.copy(), m.copy(), v.copy()
    adamw_step(param, grad, m, v, step, lr, beta1, beta2, eps, weight_decay)
    return param, m, v


def adamw_step_loops(param, grad, m, v, step, lr, beta1, beta2, eps, weight_decay):
    out = []
    for p, g, a, b in zip(param, grad, m, v):
        a, b = a + (1 - beta1) * (g - a), b + (1 - beta2) * (g * g - b)
        root = (b / (1 - beta2**step)) ** 0.5
        out.append((p - lr * (a / (1 - beta1**step) / (root + eps) + weight_decay * p), a, b))
    return tuple(np.array(column) for column in zip(*out))


def adamw_step_folded(param, grad, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m, v = np.array([[beta1], [beta2]]) * [m, v] + np.array([[1 - beta1], [1 - beta2]]) * [grad, grad * grad]
    correction = np.sqrt(1 - beta2**step)
    update = m * correction / (1 - beta1**step) / (np.sqrt(v) + eps * correction)
    return [(1 - lr * weight_decay) * param - lr * update, m, v]


RIGHT = {
    "09.running_mean": [running_mean_sum, running_mean_recursive, running_mean_loops],
    "09.adamw_step": [adamw_step_op, adamw_step_loops, adamw_step_folded],
    "05.split_heads": [split_heads_stack, split_heads_loops, split_heads_transpose],
    "05.attention_forward": [attention_forward_loops, attention_forward_matmul, attention_forward_op, attention_forward_flash],
    "05.softmax_backward": [softmax_backward_jacobian, softmax_backward_loops, softmax_backward_einsum],
    "05.attention_backward": [attention_backward_op, attention_backward_flash, attention_backward_loops],
    "08.cosine": [cosine_flat, cosine_loops, cosine_unit],
    "08.slopes": [slopes_flat, slopes_in_place, slopes_einsum],
    "08.first_wrong": [first_wrong_loops, first_wrong_nonzero, first_wrong_floats],
    "02.linear_backward": [linear_backward_loops, linear_backward_einsum, linear_backward_sum, linear_backward_op],
    "02.cross_entropy_backward": [cross_entropy_backward_onehot, cross_entropy_backward_loops, cross_entropy_backward_op],
    "02.numerical_gradient": [numerical_gradient_in_place, numerical_gradient_flat, numerical_gradient_nditer],
    "02.relative_error": [relative_error_loops, relative_error_norm, relative_error_scaled],
    "04.rope_tables": [rope_tables_loops, rope_tables_complex, rope_tables_exp],
    "04.rope_forward": [rope_forward_loops, rope_forward_stack, rope_forward_repeat, rope_forward_op],
    "04.rope_backward": [rope_backward_loops, rope_backward_einsum, rope_backward_complex],
    "04.to_rotate_half": [to_rotate_half_index, to_rotate_half_concatenate, to_rotate_half_matrix],
    "03.rmsnorm_forward": [rmsnorm_forward_loops, rmsnorm_forward_einsum, rmsnorm_forward_norm, rmsnorm_forward_op],
    "03.rmsnorm_backward": [rmsnorm_backward_loops, rmsnorm_backward_einsum, rmsnorm_backward_jacobian, rmsnorm_backward_op],
}
RIGHT |= right_answers_10.RIGHT | right_answers_11.RIGHT
