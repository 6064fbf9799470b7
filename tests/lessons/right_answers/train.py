"""Right answers to the exercises of lesson 13, written in other ways than the solutions."""
import math

import numpy as np

from minillama.nn import attention_forward
from minillama.nn.rope import rope_forward


def accumulate_loops(losses, grads, targets):
    total, nats, grad = 0, 0.0, [0.0] * grads.shape[1]
    for loss, g, row in zip(losses, grads, targets):
        n = sum(target >= 0 for target in row.tolist())
        total += n
        nats += n * loss
        grad = [a + n * b for a, b in zip(grad, g)]
    return nats / total, [a / total for a in grad]


def accumulate_average(losses, grads, targets):
    n = [np.count_nonzero(row + 1) for row in targets]
    return np.average(losses, weights=n), np.average(grads, axis=0, weights=n)


def accumulate_tokens(losses, grads, targets):
    owner = np.repeat(np.arange(len(targets)), [len(row) for row in targets])[np.concatenate(targets) != -1]  # of each scored token
    both = np.column_stack([losses, grads])[owner].mean(0)
    return both[0], both[1:]


def token_probabilities_loops(logits, temperature, top_p):
    weight = [math.exp(z / temperature) for z in logits]
    p = [w / sum(weight) for w in weight]
    kept, held = [], 0.0
    for token in sorted(range(len(p)), key=lambda i: -p[i]):
        kept.append(token)
        held += p[token]
        if held >= top_p:
            break
    return np.array([p[i] / held if i in kept else 0.0 for i in range(len(p))])


def token_probabilities_minus_infinity(logits, temperature, top_p):
    z = logits / temperature
    order = np.argsort(z)[::-1]
    p = np.exp(z[order] - z.max())
    stays = np.searchsorted(np.cumsum(p / p.sum()), top_p) + 1
    z = z.copy()
    z[order[stays:]] = -np.inf
    p = np.exp(z - z.max())
    return p / p.sum()


def token_probabilities_threshold(logits, temperature, top_p):
    p = np.exp(logits / temperature - np.logaddexp.reduce(logits / temperature))
    ahead = (p[None] * (p[None] > p[:, None])).sum(1)            # of every token: the mass of the likelier ones
    return np.where(ahead < top_p, p, 0) / p[ahead < top_p].sum()


def decode_step_op(x, wq, wk, wv, keys, values, cos, sin):
    B, n, H, Dh = keys.shape
    at = slice(n, n + 1)
    q, k = (rope_forward((x @ w.T).reshape(B, 1, H, Dh), cos[at], sin[at])[0] for w in (wq, wk))
    keys, values = np.append(keys, k, 1), np.append(values, (x @ wv.T).reshape(B, 1, H, Dh), 1)
    return attention_forward(q, keys, values)[0], keys, values


def decode_step_padded(x, wq, wk, wv, keys, values, cos, sin):
    """Into arrays that have room, as a real cache does, and by the full attention's last row."""
    B, n, H, Dh = keys.shape
    room_k, room_v = np.zeros((2, B, n + 3, H, Dh))
    room_k[:, :n], room_v[:, :n] = keys, values
    room_k[:, n:n + 1] = rope_forward((x @ wk.T).reshape(B, 1, H, Dh), cos[n:n + 1], sin[n:n + 1])[0]
    room_v[:, n] = (x[:, 0] @ wv.T).reshape(B, H, Dh)
    q = rope_forward((x @ wq.T).reshape(B, 1, H, Dh), cos[n:n + 1], sin[n:n + 1])[0]
    full = np.concatenate([np.zeros((B, n, H, Dh)), q], 1)
    keys, values = room_k[:, :n + 1], room_v[:, :n + 1]
    return attention_forward(full, keys, values)[0][:, -1:], keys, values


def decode_step_loops(x, wq, wk, wv, keys, values, cos, sin):
    B, n, H, Dh = keys.shape
    turn = (cos + 1j * sin)[n]
    out, new_k, new_v = np.zeros((B, 1, H, Dh)), np.zeros((B, 1, H, Dh)), np.zeros((B, 1, H, Dh))
    for b, h in np.ndindex(B, H):
        rows = slice(h * Dh, (h + 1) * Dh)
        q, k, v = (w[rows] @ x[b, 0] for w in (wq, wk, wv))
        q, k = (np.ravel([(z.real, z.imag) for z in (a[0::2] + 1j * a[1::2]) * turn]) for a in (q, k))
        new_k[b, 0, h], new_v[b, 0, h] = k, v
        seen = [*keys[b, :, h], k]
        weight = np.array([math.exp(q @ key / math.sqrt(Dh)) for key in seen])
        out[b, 0, h] = weight / weight.sum() @ np.array([*values[b, :, h], v])
    return out, np.concatenate([keys, new_k], 1), np.concatenate([values, new_v], 1)


RIGHT = {
    "13.accumulate": [accumulate_loops, accumulate_average, accumulate_tokens],
    "13.token_probabilities": [token_probabilities_loops, token_probabilities_minus_infinity, token_probabilities_threshold],
    "13.decode_step": [decode_step_op, decode_step_padded, decode_step_loops],
}
