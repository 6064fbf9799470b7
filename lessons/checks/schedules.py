"""Lesson 11: what the learner writes, and the ways it goes wrong. Equation numbers are the lesson's.

A schedule is judged by the array of its rates: the loss would not tell most of these mistakes from the right one.
"""
import numpy as np

from ..check import Exercise, Mistake


def learning_rate(step, peak, steps, warmup_steps, final_fraction):
    """Rates of the updates in `step`, an int array (1 is the first update, and some may be later than `steps`). Hint: np.where."""
    warm = peak * step / warmup_steps
    progress = np.minimum((step - warmup_steps) / (steps - warmup_steps), 1.0)
    final = peak * final_fraction
    cosine = final + (peak - final) * (1 + np.cos(np.pi * progress)) / 2
    return np.where(step <= warmup_steps, warm, cosine)


def linear_rate(step, peak, steps, warmup_steps, final_fraction):
    """As learning_rate, with a straight line from the peak to the final rate in place of the half cosine."""
    warm = peak * step / warmup_steps
    progress = np.minimum((step - warmup_steps) / (steps - warmup_steps), 1.0)
    final = peak * final_fraction
    line = peak + (final - peak) * progress
    return np.where(step <= warmup_steps, warm, line)


def repair(rates, final_fraction):
    """The rates that a run should have had. Its warm-up is right, up to the first time that the peak is reached; what follows is wrong."""
    peak, steps = rates.max(), len(rates)
    warmup_steps = rates.argmax() + 1
    step = np.arange(1, steps + 1)
    progress = (step - warmup_steps) / (steps - warmup_steps)
    cosine = peak * final_fraction + peak * (1 - final_fraction) * (1 + np.cos(np.pi * progress)) / 2
    return np.where(step <= warmup_steps, rates, cosine)


def _schedule_inputs(rng):
    steps = int(rng.integers(36, 44))
    return np.arange(1, 53), float(rng.uniform(0.5, 2)), steps, int(rng.integers(5, 9)), float(rng.uniform(0.1, 0.2))


def _repair_inputs(rng):
    steps, warmup_steps, peak = 36, int(rng.integers(5, 9)), float(rng.uniform(0.5, 2))
    late = np.arange(steps - warmup_steps)
    swing = peak * (0.3 + 0.7 * (1 + np.cos(np.pi * late / 5)) / 2)  # oscillates, and is back at its peak more than once
    return np.concatenate((peak * np.arange(1, warmup_steps) / warmup_steps, [peak], swing[1:])), float(rng.uniform(0.1, 0.2))


WARM, PROGRESS, CLAMPED = "peak * step / warmup_steps", "(step - warmup_steps) / (steps - warmup_steps)", "np.minimum((step - warmup_steps) / (steps - warmup_steps), 1.0)"
COSINE, LINE = "final + (peak - final) * (1 + np.cos(np.pi * progress)) / 2", "peak + (final - peak) * progress"

EXERCISES = {
    "11.learning_rate": Exercise(
        learning_rate, ("rates",), _schedule_inputs,
        (
            Mistake("clamped-not-stretched", COSINE, "np.maximum(peak * (1 + np.cos(np.pi * progress)) / 2, final)",
                    "the cosine goes down to zero and is cut off at the final rate; (11.4) stretches it from peak to final"),
            Mistake("decays-in-warmup", ("return np.where(step <= warmup_steps, warm, cosine)", PROGRESS), ("return np.minimum(step / warmup_steps, 1.0) * cosine", "step / steps"),
                    "the cosine begins at step 0, so that it decays during the warm-up, too; p is 0 at the end of the warm-up (11.2)"),
            Mistake("jump-after-warmup", PROGRESS, "step / steps", "p counts from step 0: the rate jumps down when the warm-up ends; (11.2) counts from there"),
            Mistake("horizon-without-warmup", "/ (steps - warmup_steps)", "/ steps", "p is divided by all steps; (11.2) divides by those after the warm-up, or the final rate comes too late"),
            Mistake("rises-again", CLAMPED, PROGRESS, "p is not held at 1: behind the last step the cosine goes up again (11.2)"),
            Mistake("to-the-maximum", "final + (peak - final) *", "peak + (final - peak) *", "peak and final are exchanged: after the warm-up the rate drops, and anneals to the *maximum* (11.4)"),
            Mistake("off-by-one", "warm = peak", "step = step - 1\n    warm = peak", "updates are counted from 0, so that the first has a rate of zero; here the first one is step 1 (11.1)"),
            Mistake("full-cosine", "np.pi * progress", "2 * np.pi * progress", "the cosine makes a whole turn and is back at the peak at the end; (11.3) is half a turn"),
            Mistake("quarter-cosine", COSINE, "final + (peak - final) * np.cos(np.pi * progress / 2)", "it is a quarter of a turn, which falls fastest at its end; (11.3) is half a turn, flat at both ends"),
            Mistake("half-forgotten", "(1 + np.cos(np.pi * progress)) / 2", "(1 + np.cos(np.pi * progress))", "the 1/2 of (11.3) is missing: 1 + cos goes from 2 to 0"),
            Mistake("final-is-a-rate", "final = peak * final_fraction", "final = final_fraction", "final_fraction is taken for a rate; it is a share of the peak (11.4)"),
            Mistake("final-added", COSINE, "final + peak * (1 + np.cos(np.pi * progress)) / 2", "final is added to the whole cosine, so that the rate begins above the peak; (11.4) spans peak minus final"),
            Mistake("to-zero", "final = peak * final_fraction", "final = 0.0", "it decays to zero; (11.4) ends at the final rate"),
            Mistake("no-warmup", WARM, "peak + 0 * step", "there is no warm-up: the first update has the full peak (11.1)"),
            Mistake("micro-batches", "warm = peak", "step = 4 * step\n    warm = peak", "every step counts four times, as if each of its micro-batches were an update"),
            Mistake("warmup-from-final", WARM, "peak * (final_fraction + (1 - final_fraction) * step / warmup_steps)", "the warm-up begins at the final rate; (11.1) begins at zero"),
        ),
    ),
    "11.linear_rate": Exercise(
        linear_rate, ("rates",), _schedule_inputs,
        (
            Mistake("below-zero", CLAMPED, PROGRESS, "p is not held at 1: behind the last step the line goes on down, and below zero (11.2)"),
            Mistake("jump-after-warmup", PROGRESS, "step / steps", "p counts from step 0: the rate jumps down when the warm-up ends (11.2)"),
            Mistake("decays-in-warmup", ("return np.where(step <= warmup_steps, warm, line)", PROGRESS), ("return np.minimum(step / warmup_steps, 1.0) * line", "step / steps"),
                    "the line begins at step 0, so that it decays during the warm-up, too (11.2)"),
            Mistake("horizon-without-warmup", "/ (steps - warmup_steps)", "/ steps", "p is divided by all steps; (11.2) divides by those after the warm-up"),
            Mistake("clamped-not-stretched", LINE, "np.maximum(peak * (1 - progress), final)", "the line goes down to zero and is cut off at the final rate; (11.5) goes straight to it"),
            Mistake("to-the-maximum", LINE, "final + (peak - final) * progress", "peak and final are exchanged: the rate drops, and climbs (11.5)"),
            Mistake("to-zero", "final = peak * final_fraction", "final = 0.0", "it decays to zero; (11.5) ends at the final rate"),
            Mistake("off-by-one", "warm = peak", "step = step - 1\n    warm = peak", "updates are counted from 0, so that the first has a rate of zero (11.1)"),
            Mistake("final-is-a-rate", "final = peak * final_fraction", "final = final_fraction", "final_fraction is taken for a rate; it is a share of the peak (11.5)"),
            Mistake("cosine", LINE, "final + (peak - final) * (1 + np.cos(np.pi * progress)) / 2", "it is the half cosine of (11.4); a straight line is asked for (11.5)"),
            Mistake("no-warmup", WARM, "peak + 0 * step", "there is no warm-up: the first update has the full peak (11.1)"),
        ),
    ),
    "11.repair": Exercise(
        repair, ("rates",), _repair_inputs,
        (
            Mistake("index-for-step", "rates.argmax() + 1", "rates.argmax()", "the warm-up is taken one step too short: index 0 of the array is step 1"),
            Mistake("last-peak", "rates.argmax() + 1", "steps - rates[::-1].argmax()", "the *last* place of the peak is taken for the end of the warm-up; it is the first"),
            Mistake("peak-from-the-end", "peak, steps = rates.max()", "peak, steps = rates[-1]", "the peak is read at the end of the array; it is the largest rate"),
            Mistake("floor-from-the-run", "peak * final_fraction + peak * (1 - final_fraction)", "rates.min() + (peak - rates.min())", "the final rate is read off the wrong run; it is peak times final_fraction (11.4)"),
            Mistake("step-from-zero", "np.arange(1, steps + 1)", "np.arange(steps)", "the steps are counted from 0: the whole decay comes one step late"),
            Mistake("horizon-without-warmup", "/ (steps - warmup_steps)", "/ steps", "p is divided by all steps; (11.2) divides by those after the warm-up"),
            Mistake("clamped-not-stretched", "peak * final_fraction + peak * (1 - final_fraction) * (1 + np.cos(np.pi * progress)) / 2",
                    "np.maximum(peak * (1 + np.cos(np.pi * progress)) / 2, peak * final_fraction)", "the cosine goes down to zero and is cut off at the final rate; (11.4) stretches it"),
            Mistake("jump-after-warmup", "(step - warmup_steps) / (steps - warmup_steps)", "step / steps", "p counts from step 0: the rate jumps down when the warm-up ends (11.2)"),
            Mistake("dips-stay", "return np.where(step <= warmup_steps, rates, cosine)", "return np.minimum(rates, cosine)", "the smaller of both rates is taken, so that the dips of the wrong run stay in it"),
            Mistake("linear", "(1 + np.cos(np.pi * progress)) / 2", "(1 - progress)", "it is repaired with a straight line; (11.4) is half a cosine"),
            Mistake("as-it-was", "return np.where(step <= warmup_steps, rates, cosine)", "return np.where(step <= steps, rates, cosine)", "nothing is repaired: the rates come back as they were"),
        ),
    ),
}
