"""Learning rate: linear warm-up, then half a cosine down to a tenth of the peak.

    step <= warmup:   lr = peak * step / warmup
    after it:         lr = final + (peak - final) (1 + cos(pi p)) / 2       p = (step - warmup) / (steps - warmup)

Loshchilov & Hutter 2017 (arXiv:1608.03983), Eq. 5; 2000 warm-up steps and final = peak / 10 [LLaMA §2.3].
Lesson: lessons/11_schedules.ipynb.
"""
import math


def learning_rate(step, peak, steps, warmup_steps=2000, final_fraction=0.1):
    """Learning rate of one update: a pure function of the step, so that a resumed run needs no scheduler state.

    Args:
        step:           int     1 for the first update, `steps` for the last; later steps stay at the final rate
        peak:           float   reached at step == warmup_steps
        steps:          int     updates in the complete run
        warmup_steps:   int     cut to `steps` when it is longer
        final_fraction: float   lr at the last step, as a share of the peak

    Returns:
        lr: float
    """
    warmup_steps = min(warmup_steps, steps)
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = min((step - warmup_steps) / max(steps - warmup_steps, 1), 1.0)
    final = peak * final_fraction
    return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2
