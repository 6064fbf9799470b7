"""Lesson 09: what the learner writes, and the ways it goes wrong. Equation numbers are the lesson's."""
import numpy as np

from ..check import Exercise, Mistake


def running_mean(gradients, beta):
    """m and m_hat (D,) after all gradients (n, D), in their order; m starts at zero."""
    m = np.zeros(gradients.shape[1])
    for g in gradients:
        m = beta * m + (1 - beta) * g
    m_hat = m / (1 - beta ** len(gradients))
    return m, m_hat


def adamw_step(param, grad, m, v, step, lr, beta1, beta2, eps, weight_decay):
    """param, m and v after update number `step` (1 for the first); what is given stays as it is."""
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad**2
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    param = param * (1 - lr * weight_decay)
    param = param - lr * m_hat / (np.sqrt(v_hat) + eps)
    return param, m, v


def _mean_inputs(rng):
    return rng.standard_normal((6, 5)), 0.8


def _step_inputs(rng):
    param, grad, m = rng.standard_normal((3, 8))
    return param, grad, 0.5 * m, rng.uniform(0.1, 1, 8), 3, 0.1, 0.8, 0.9, 0.05, 0.3


def _step_terms(param, grad, m, v, step, lr, beta1, beta2, eps, weight_decay):
    _, m, v = adamw_step(param, grad, m, v, step, lr, beta1, beta2, eps, weight_decay)
    update = m / (1 - beta1**step) / (np.sqrt(v / (1 - beta2**step)) + eps)
    return {"param": {"param": (param, 1 - lr * weight_decay), "m_hat / (√v_hat + eps)": (update, -lr)}}


STEP = "lr * m_hat / (np.sqrt(v_hat) + eps)"

EXERCISES = {
    "09.running_mean": Exercise(
        running_mean, ("m", "m_hat"), _mean_inputs,
        (
            Mistake("betas-exchanged", "beta * m + (1 - beta) * g", "(1 - beta) * m + beta * g", "the new gradient counts beta times and the old mean 1 - beta; it is the other way round (9.1)"),
            Mistake("sum-not-mean", "(1 - beta) * g", "g", "the new gradient is not multiplied by 1 - beta (9.1): this is SGD's momentum, whose scale is 1/(1 - beta) times larger"),
            Mistake("one-count-late", "beta ** len(gradients)", "beta ** (len(gradients) - 1)", "the count is one too small: after the first gradient it is 1, not 0 (9.3)"),
            Mistake("one-count-early", "beta ** len(gradients)", "beta ** (len(gradients) + 1)", "the count is one too large: after the first gradient it is 1, not 2 (9.3)"),
            Mistake("first-step-only", "beta ** len(gradients)", "beta", "the correction is that of the first step, for ever; its share shrinks as beta^t (9.3)"),
            Mistake("multiplied", "m / (1 - beta ** len(gradients))", "m * (1 - beta ** len(gradients))", "m is multiplied where it must be divided (9.3): m is too small, and must grow"),
            Mistake("not-corrected", "m / (1 - beta ** len(gradients))", "m", "m_hat is m: nothing is corrected (9.3)"),
            Mistake("first-gradient-first", "np.zeros(gradients.shape[1])", "gradients[0]", "m starts at the first gradient; it starts at zero, and (9.3) corrects for that"),
            Mistake("backwards", "for g in gradients", "for g in gradients[::-1]", "the gradients are taken from the last to the first: then the oldest counts most (9.2)"),
        ),
    ),
    "09.adamw_step": Exercise(
        adamw_step, ("param", "m", "v"), _step_inputs,
        (
            Mistake("no-bias-correction", ("m / (1 - beta1**step)", "v / (1 - beta2**step)"), ("m + 0 * step", "v + 0 * step"), "m and v are not corrected for their start at zero (9.3)"),
            Mistake("m-not-corrected", "m / (1 - beta1**step)", "m", "m is not corrected for its start at zero (9.3)"),
            Mistake("v-not-corrected", "v / (1 - beta2**step)", "v", "v is not corrected for its start at zero (9.3)"),
            Mistake("count-from-zero", ("beta1**step", "beta2**step"), ("beta1 ** (step - 1)", "beta2 ** (step - 1)"), "updates are counted from 0; the first one is number 1, or it divides by 0 (9.3)"),
            Mistake("l2", ("m = beta1 * m + (1 - beta1) * grad", "param * (1 - lr * weight_decay)"), ("grad = grad + weight_decay * param\n    m = beta1 * m + (1 - beta1) * grad", "param + 0.0"),
                    "the decay is added to the gradient, so that √v divides it, too: this is Adam with L2 (9.6), not AdamW (9.5)"),
            Mistake("decay-without-lr", "1 - lr * weight_decay", "1 - weight_decay", "the decay is not multiplied by the learning rate (9.5): weights would be gone in a few steps"),
            Mistake("decay-missing", "param = param * (1 - lr * weight_decay)", "param = param * 1.0", "there is no weight decay (9.5)"),
            Mistake("decay-of-the-new", ("param * (1 - lr * weight_decay)", "param - " + STEP), ("param + 0.0", f"(param - {STEP}) * (1 - lr * weight_decay)"),
                    "what decays is the parameter after its step, and the step with it; (9.5) shrinks the old one"),
            Mistake("eps-inside", "np.sqrt(v_hat) + eps", "np.sqrt(v_hat + eps)", "eps is under the root; it is added to the root (9.4)"),
            Mistake("eps-missing", "np.sqrt(v_hat) + eps", "np.sqrt(v_hat)", "eps is left out (9.4)"),
            Mistake("root-missing", "np.sqrt(v_hat) + eps", "v_hat + eps", "the root of v is missing (9.4): then the step depends on the gradient's scale"),
            Mistake("not-squared", "grad**2", "np.abs(grad)", "v is the mean of |g|, not of its square (9.1)"),
            Mistake("betas-exchanged", ("beta1 * m + (1 - beta1)", "beta2 * v + (1 - beta2)"), ("beta2 * m + (1 - beta2)", "beta1 * v + (1 - beta1)"), "beta1 and beta2 are exchanged in (9.1)"),
            Mistake("square-of-m", "grad**2", "m**2", "v is the mean of m², not of the gradient's square (9.1)"),
            Mistake("uphill", "param - " + STEP, "param + " + STEP, "the step goes uphill (9.4)"),
            Mistake("no-momentum", "lr * m_hat", "lr * grad", "the gradient itself stands where its running mean must (9.4)"),
        ),
        _step_terms,
    ),
}
