"""Right answers to the exercises of lesson 09, written in other ways than the solutions."""
import numpy as np

from minillama.optim import adamw_step


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
}
