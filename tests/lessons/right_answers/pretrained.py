"""Right answers to the exercises of lesson 14, written in other ways than the solutions."""
import numpy as np

from minillama.nn import linear_backward, linear_forward


def choose_lr_loops(rates, gain, forgetting, limits):
    chosen = []
    for limit in limits:
        best, found = 0.0, -float("inf")
        for lr, gains, losses in zip(rates, gain, forgetting):
            if max(losses) <= limit and sum(gains) / len(gains) > found:
                best, found = lr, sum(gains) / len(gains)
        chosen.append(best)
    return chosen


def choose_lr_sorted(rates, gain, forgetting, limits):
    order = np.argsort(-gain.sum(1))
    return np.array([next((rates[i] for i in order if (forgetting[i] <= limit).all()), 0) for limit in limits], float)


def choose_lr_table(rates, gain, forgetting, limits):
    allowed = forgetting.max(1)[None] <= limits[:, None]         # (L, R)
    score = np.where(allowed, gain.mean(1)[None] + 1e3, 0)
    return np.where(allowed.any(1), np.take(rates, score.argmax(1)), 0.0)


def masked_targets_lists(prompts, answers, eos_id):
    tokens = [[*prompt, *answer] for prompt, answer in zip(prompts, answers)]
    targets = [[-1] * (len(prompt) - 1) + [*answer, eos_id] for prompt, answer in zip(prompts, answers)]
    T = max(map(len, tokens))
    return [row + [0] * (T - len(row)) for row in tokens], [row + [-1] * (T - len(row)) for row in targets]


def masked_targets_positions(prompts, answers, eos_id):
    n, m = (np.array([len(part) for part in parts])[:, None] for parts in (prompts, answers))
    place = np.arange((n + m).max())[None]
    tokens = np.zeros((len(prompts), place.size + 1), int)
    for row, prompt, answer in zip(tokens, prompts, answers):
        row[:len(prompt) + len(answer) + 1] = [*prompt, *answer, eos_id]
    targets = np.where((place >= n - 1) & (place < n + m), tokens[:, 1:], -1)
    return np.where(place < n + m, tokens[:, :-1], 0), targets


def masked_targets_one_by_one(prompts, answers, eos_id):
    T = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers))
    tokens, targets = [], []
    for prompt, answer in zip(prompts, answers):
        text = [*map(int, prompt), *map(int, answer), eos_id]
        for t in range(T):
            inside = t + 1 < len(text)
            tokens.append(text[t] if inside else 0)
            targets.append(text[t + 1] if inside and t + 1 >= len(prompt) else -1)
    return np.reshape(tokens, (-1, T)), np.reshape(targets, (-1, T))


def lora_forward_merged(x, weight, a, b, alpha):
    merged = weight + np.einsum("nr,rd->nd", b, a) * alpha / a.shape[0]
    return x @ merged.T, merged


def lora_forward_ops(x, weight, a, b, alpha):
    h, _ = linear_forward(x, a)
    adapter, _ = linear_forward(h, b)
    return linear_forward(x, weight)[0] + adapter * (alpha / b.shape[1]), weight + (a.T @ b.T).T * (alpha / b.shape[1])


def lora_forward_loops(x, weight, a, b, alpha):
    merged = weight.copy()
    for k in range(len(a)):                                      # a sum of r matrices of rank one
        merged += alpha / len(a) * np.outer(b[:, k], a[k])
    return np.array([[merged @ token for token in row] for row in x]), merged


def lora_backward_ops(dout, x, weight, a, b, alpha):
    h, a_cache = linear_forward(x, a)
    _, b_cache = linear_forward(h, b)
    _, w_cache = linear_forward(x, weight)
    dh, db = linear_backward(alpha / len(a) * dout, b_cache)
    dx, da = linear_backward(dh, a_cache)
    return dx + linear_backward(dout, w_cache)[0], da, db


def lora_backward_merged(dout, x, weight, a, b, alpha):
    """By way of the gradient of the merged matrix."""
    scale = alpha / len(a)
    dmerged = np.tensordot(dout, x, ((0, 1), (0, 1)))            # (N, D)
    return dout @ (weight + scale * b @ a), scale * b.T @ dmerged, scale * dmerged @ a.T


def lora_backward_loops(dout, x, weight, a, b, alpha):
    s, dx, da, db = alpha / len(a), np.zeros_like(x), np.zeros_like(a), np.zeros_like(b)
    for n in np.ndindex(x.shape[:2]):
        dh = s * (b.T @ dout[n])
        dx[n] = weight.T @ dout[n] + a.T @ dh
        da += np.outer(dh, x[n])
        db += s * np.outer(dout[n], a @ x[n])
    return dx, da, db


RIGHT = {
    "14.choose_lr": [choose_lr_loops, choose_lr_sorted, choose_lr_table],
    "14.masked_targets": [masked_targets_lists, masked_targets_positions, masked_targets_one_by_one],
    "14.lora_forward": [lora_forward_merged, lora_forward_ops, lora_forward_loops],
    "14.lora_backward": [lora_backward_ops, lora_backward_merged, lora_backward_loops],
}
