"""Right answers to the exercises of lesson 11, written in other ways than the solutions."""
import math

import numpy as np

from minillama.optim import learning_rate


def learning_rate_loops(step, peak, steps, warmup_steps, final_fraction):
    rates = []
    for s in step:
        if s < warmup_steps:
            rates.append(peak * s / warmup_steps)
        elif s >= steps:
            rates.append(peak * final_fraction)
        else:
            p = (s - warmup_steps) / (steps - warmup_steps)
            rates.append(peak * (final_fraction + (1 - final_fraction) * math.cos(math.pi * p / 2) ** 2))
    return rates


def learning_rate_masks(step, peak, steps, warmup_steps, final_fraction):
    rates, low, cooling = np.empty(len(step)), peak * final_fraction, step > warmup_steps
    rates[~cooling] = np.linspace(0, peak, warmup_steps + 1)[1:]
    angle = np.pi * np.clip((step[cooling] - warmup_steps) / (steps - warmup_steps), 0, 1)
    rates[cooling] = (peak + low) / 2 + (peak - low) / 2 * np.cos(angle)
    return rates


def learning_rate_op(step, peak, steps, warmup_steps, final_fraction):
    return np.array([learning_rate(int(s), peak, steps, warmup_steps, final_fraction) for s in step])


def linear_rate_loops(step, peak, steps, warmup_steps, final_fraction):
    rates = []
    for s in step:
        share = s / warmup_steps if s < warmup_steps else max(0.0, (steps - s) / (steps - warmup_steps))
        rates.append(peak * share if s < warmup_steps else peak * (final_fraction + (1 - final_fraction) * share))
    return np.array(rates)


def linear_rate_interp(step, peak, steps, warmup_steps, final_fraction):
    return np.interp(step, [0, warmup_steps, steps], [0, peak, peak * final_fraction])


def linear_rate_minimum(step, peak, steps, warmup_steps, final_fraction):
    slope = peak * (1 - final_fraction) / (steps - warmup_steps)
    down = peak - slope * (step - warmup_steps)
    return np.minimum(peak / warmup_steps * step, np.maximum(down, peak * final_fraction))


def repair_op(rates, final_fraction):
    peak, warmup_steps = max(rates), int(np.nonzero(rates == rates.max())[0][0]) + 1
    return np.array([learning_rate(s, peak, len(rates), warmup_steps, final_fraction) for s in range(1, len(rates) + 1)])


def repair_concatenate(rates, final_fraction):
    peak, first = rates.max(), int(np.argmax(rates))
    angle = np.linspace(0, np.pi, len(rates) - first)
    low = peak * final_fraction
    return np.concatenate((rates[:first], (peak + low + (peak - low) * np.cos(angle)) / 2))


def repair_in_place(rates, final_fraction):
    rates = rates.copy()
    w = 1
    while rates[w - 1] < rates.max():
        w += 1
    for s in range(w, len(rates) + 1):
        share = np.cos(np.pi / 2 * (s - w) / (len(rates) - w)) ** 2
        rates[s - 1] = rates[w - 1] * (share + final_fraction * (1 - share))
    return rates


RIGHT = {
    "11.learning_rate": [learning_rate_loops, learning_rate_masks, learning_rate_op],
    "11.linear_rate": [linear_rate_loops, linear_rate_interp, linear_rate_minimum],
    "11.repair": [repair_op, repair_concatenate, repair_in_place],
}
