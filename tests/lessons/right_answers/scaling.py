"""Right answers to the exercises of lesson 16, written in other ways than the solutions."""
import math

import numpy as np


def power_law_polyfit(sizes, losses, floor):
    slope, start = np.polyfit(np.log(sizes), np.log(losses - floor), 1)
    return math.exp(start), -slope


def power_law_base_10(sizes, losses, floor):
    matrix = np.stack([np.ones(len(sizes)), -np.log10(sizes)], 1)
    (start, a), *_ = np.linalg.lstsq(matrix, np.log10(losses - floor), rcond=None)
    return [10**start, a]


def power_law_loops(sizes, losses, floor):
    n, sx, sy, sxx, sxy = 0, 0.0, 0.0, 0.0, 0.0
    for size, loss in zip(sizes, losses):
        x, y = math.log(size), math.log(loss - floor)
        n, sx, sy, sxx, sxy = n + 1, sx + x, sy + y, sxx + x * x, sxy + x * y
    slope = (n * sxy - sx * sy) / (n * sxx - sx * sx)
    return math.exp((sy - slope * sx) / n), -slope


def flops_per_token_kaplan(parameters, vocab, dim, layers, seq_len):
    return 6 * (parameters - vocab * dim) + 6 * layers * np.asarray(seq_len) * dim


def flops_per_token_halved(parameters, vocab, dim, layers, seq_len):
    whole = 12 * layers * dim * seq_len.astype(float)
    return 6.0 * parameters - 6.0 * vocab * dim + whole / 2


def flops_per_token_loops(parameters, vocab, dim, layers, seq_len):
    totals = []
    for T in seq_len:
        total = 3 * 2 * (parameters - vocab * dim)
        for _ in range(layers):
            for _product in ("scores", "values"):
                total += 3 * 2 * dim * T / 2
        totals.append(total)
    return np.array(totals)


def fit_floor_all_at_once(sizes, losses, floors):
    x, y = np.log(sizes), np.log(losses - floors[:, None])
    dx = x - x.mean()
    a = -(y @ dx) / (dx @ dx)
    A = np.exp(y.mean(1) + a * x.mean())
    errors = np.linalg.norm(losses - floors[:, None] - A[:, None] * sizes ** -a[:, None], axis=1) / len(sizes) ** 0.5
    k = errors.argmin()
    return errors, floors[k], A[k], a[k]


def fit_floor_sorted(sizes, losses, floors):
    matrix = np.stack([np.ones(len(sizes)), -np.log10(sizes)], 1)

    def candidate(E):
        (start, a), *_ = np.linalg.lstsq(matrix, np.log10(losses - E), rcond=None)
        return math.hypot(*(E + 10**start / sizes**a - losses)) / math.sqrt(len(sizes)), E, 10**start, a

    candidates = [candidate(E) for E in floors]
    return [np.array([error for error, *_ in candidates]), *sorted(candidates)[0][1:]]


def fit_floor_keeps_the_best(sizes, losses, floors):
    errors, best = np.zeros(len(floors)), None
    for k, E in enumerate(floors):
        line = np.polynomial.Polynomial.fit(np.log(sizes), np.log(losses - E), 1).convert()
        errors[k] = np.std(np.append(r := losses - E - np.exp(line(np.log(sizes))), -r))
        if best is None or errors[k] < errors[best[0]]:
            best = k, E, math.exp(line.coef[0]), -line.coef[1]
    return errors, *best[1:]


def compute_optimal_two_powers(flops, A, a, B, b):
    G = (a * A / (b * B)) ** (1 / (a + b))
    return G * (flops / 6) ** (b / (a + b)), (flops / 6) ** (a / (a + b)) / G


def compute_optimal_logarithms(flops, A, a, B, b):
    n = (np.log(a * A / (b * B)) + b * np.log(flops / 6)) / (a + b)
    return np.exp(n), np.exp(np.log(flops / 6) - n)


def compute_optimal_bisection(flops, A, a, B, b):
    """Where the derivative along the curve of equal cost is zero."""
    low, high = np.full(len(flops), -50.0), np.full(len(flops), 50.0)
    for _ in range(200):
        n = (low + high) / 2
        still_falls = a * A * np.exp(-a * n) > b * B * np.exp(-b * (np.log(flops / 6) - n))
        low, high = np.where(still_falls, n, low), np.where(still_falls, high, n)
    return [np.exp(n), flops / 6 / np.exp(n)]


RIGHT = {
    "16.power_law": [power_law_polyfit, power_law_base_10, power_law_loops],
    "16.flops_per_token": [flops_per_token_kaplan, flops_per_token_halved, flops_per_token_loops],
    "16.fit_floor": [fit_floor_all_at_once, fit_floor_sorted, fit_floor_keeps_the_best],
    "16.compute_optimal": [compute_optimal_two_powers, compute_optimal_logarithms, compute_optimal_bisection],
}
