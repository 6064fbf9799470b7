"""What experiments put in place of an op: by name, so that worker processes find it. `lessons/lab.py` patches it in.

Here is what lessons share, and what 03 and 08 to 11 use; what one lesson alone puts in has a module named as its exercises are.

The wrong gradients are those of tests/nn/planted_bugs.py wherever they stand there: one list for the lessons and for the tests.
"""
import importlib.util
import math
from pathlib import Path

import numpy as np

from minillama import nn
from minillama.optim import adamw_step, learning_rate
from minillama.text.mixture import Mixture


def _load_planted_bugs():
    """tests/nn/planted_bugs.py, by its place in the checkout: it is no part of a package."""
    path = Path(__file__).resolve().parents[2] / "tests" / "nn" / "planted_bugs.py"
    spec = importlib.util.spec_from_file_location("planted_bugs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


planted = _load_planted_bugs()


# ---- 03: without the norm ----
def no_norm_forward(x, weight, eps=1e-6, out=None):
    """In place of RMSNorm: nothing but the gain."""
    return x * weight, (x, weight)


def no_norm_backward(dout, cache):
    x, weight = cache
    return dout * weight, (dout * x).reshape(-1, x.shape[-1]).sum(0)


# ---- 04: without positions, and with the other layout ----
def no_rope_forward(x, cos, sin):
    """In place of RoPE: nothing."""
    return x, None


def no_rope_backward(dout, cache):
    return dout


def rotate_half_forward(x, cos, sin):
    """RoPE with channel j paired with channel j + Dh/2, as Hugging Face's code does."""
    a, b = np.split(x, 2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), -1), (cos, sin)


def rotate_half_backward(dout, cache):
    cos, sin = cache
    a, b = np.split(dout, 2, -1)
    return np.concatenate((a * cos + b * sin, b * cos - a * sin), -1)


# ---- 05: attention with another mask ----
def _masked_attention(visible):
    """Attention whose mask is `visible(T)`, (T, T) bool: forward and backward."""

    def forward(q, k, v):
        qh, kh, vh = (a.swapaxes(1, 2) for a in (q, k, v))       # (B, H, T, Dh)
        p = np.where(visible(q.shape[1]), qh @ kh.swapaxes(2, 3) * np.float32(q.shape[3] ** -0.5), -np.inf)
        p = np.exp(p - p.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        return (p @ vh).swapaxes(1, 2), (q, k, v, p)             # block_backward reads the shape of q here

    def backward(dout, cache):
        p = cache[3]
        qh, kh, vh, douth = (a.swapaxes(1, 2) for a in (*cache[:3], dout))
        dp = douth @ vh.swapaxes(2, 3)
        ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * np.float32(qh.shape[3] ** -0.5)
        return tuple(a.swapaxes(1, 2) for a in (ds @ kh, ds.swapaxes(2, 3) @ qh, p.swapaxes(2, 3) @ douth))

    return forward, backward


causal_forward, causal_backward = _masked_attention(lambda T: np.tri(T, dtype=bool))
no_mask_forward, no_mask_backward = _masked_attention(lambda T: np.ones((T, T), bool))
one_ahead_forward, one_ahead_backward = _masked_attention(lambda T: np.tri(T, k=1, dtype=bool))


def no_scale_forward(q, k, v):
    """Attention without 1/√Dh: q is multiplied by it first."""
    return nn.attention_forward(q * np.float32(q.shape[3] ** 0.5), k, v)


def no_scale_backward(dout, cache):
    dq, dk, dv = nn.attention_backward(dout, cache)
    return dq * np.float32(dq.shape[3] ** 0.5), dk, dv


# ---- 08: eleven wrong gradients ----
linear_one_row = planted.linear_without_token_sum
embedding_last_one_wins = planted.embedding_last_one_wins
rmsnorm_mean_term_dropped = planted.rmsnorm_mean_term_dropped
rmsnorm_gain_forgotten = planted.rmsnorm_gain_forgotten
rope_turned_forward = planted.rope_turned_forward
attention_no_scale = planted.attention_variant(scale=False)
attention_no_row_sum = planted.attention_variant(row_sum=False)
attention_dk_not_transposed = planted.attention_variant(dk_transposed=False)
swiglu_gate_path_dropped = planted.swiglu_gate_path_dropped
swiglu_slope_is_sigmoid = planted.swiglu_slope_is_sigmoid


def cross_entropy_without_mean(dout, cache):
    """planted.cross_entropy_without_mean for any batch: the planted one counts the targets of its own."""
    return nn.cross_entropy_backward(dout, cache) * max(int((cache[1] != nn.IGNORE).sum()), 1)


BLOCK, MODEL, ENGINE = "minillama.nn.block", "minillama.nn.model", "minillama.engine.numpy_engine"
ELEVEN = {  # what it is called: (where it is patched in, its name above, its name in planted_bugs.BUGS)
    "linear: first row of the batch only": ((f"{BLOCK}.linear_backward", f"{MODEL}.linear_backward"), "linear_one_row",
                                            "linear: one batch row only"),
    "embedding: last of repeated ids wins": ((f"{MODEL}.embedding_backward",), "embedding_last_one_wins",
                                             "embedding: of repeated ids the last one wins"),
    "rmsnorm: mean term dropped": ((f"{BLOCK}.rmsnorm_backward", f"{MODEL}.rmsnorm_backward"), "rmsnorm_mean_term_dropped",
                                   "rmsnorm: mean term dropped"),
    "rmsnorm: gain forgotten": ((f"{BLOCK}.rmsnorm_backward", f"{MODEL}.rmsnorm_backward"), "rmsnorm_gain_forgotten",
                                "rmsnorm: gain forgotten in dx"),
    "rope: turned forward": ((f"{BLOCK}.rope_backward",), "rope_turned_forward", "rope: backward turns forward"),
    "attention: no 1/√Dh": ((f"{BLOCK}.attention_backward",), "attention_no_scale", "attention: 1/sqrt(Dh) missing"),
    "attention: row sum dropped": ((f"{BLOCK}.attention_backward",), "attention_no_row_sum", "attention: row sum of the softmax dropped"),
    "attention: dk not transposed": ((f"{BLOCK}.attention_backward",), "attention_dk_not_transposed", "attention: dk not transposed"),
    "swiglu: gate path dropped": ((f"{BLOCK}.swiglu_backward",), "swiglu_gate_path_dropped", "swiglu: gate path dropped"),
    "swiglu: slope is sigmoid": ((f"{BLOCK}.swiglu_backward",), "swiglu_slope_is_sigmoid", "swiglu: slope of silu taken for sigmoid"),
    "loss: without 1/N": ((f"{ENGINE}.cross_entropy_backward",), "cross_entropy_without_mean", "cross_entropy: without 1/N"),
}


def patch_of(wrong):
    """The patch of one of the ELEVEN, as lab.run takes it."""
    places, name, _ = ELEVEN[wrong]
    return dict.fromkeys(places, f"lessons.museum.{name}")


# ---- 09: other optimisers, made of the right one ----
def no_bias_correction_step(param, grad, m, v, step, *settings):
    """AdamW that takes m and v as they are: a very late step, where both corrections are 1."""
    adamw_step(param, grad, m, v, 10**9, *settings)


def adam_l2_step(param, grad, m, v, step, lr, beta1, beta2, eps, weight_decay):
    """Adam with the decay in the gradient, where m and v see it: L2 regularisation."""
    adamw_step(param, grad + weight_decay * param, m, v, step, lr, beta1, beta2, eps, 0.0)


# ---- 11: nine wrong schedules, and some right ones to compare with. All take what minillama.optim.learning_rate takes ----
def _cosine(progress):
    """From 1 at progress 0 to 0 at progress 1, and up again after it."""
    return (1 + math.cos(math.pi * progress)) / 2


def clamped(step, peak, steps, warmup_steps, final_fraction):
    """A cosine down to zero, cut off at the final rate, where the right one is stretched down to it."""
    return max(learning_rate(step, peak, steps, warmup_steps, 0.0), min(step / warmup_steps, final_fraction) * peak)


def decays_in_warmup(step, peak, steps, warmup_steps, final_fraction):
    """The cosine begins at step 0 and is multiplied with the warm-up."""
    return min(step / warmup_steps, 1.0) * learning_rate(step, peak, steps, 0, final_fraction)


def off_by_one(step, peak, steps, warmup_steps, final_fraction):
    """Updates counted from 0: the first one has a rate of zero, and the last one is not the final rate."""
    return learning_rate(step - 1, peak, steps, warmup_steps, final_fraction)


def horizon_10x(step, peak, steps, warmup_steps, final_fraction):
    """Told that the run has ten times as many steps as it will have."""
    return learning_rate(step, peak, 10 * steps, warmup_steps, final_fraction)


def micro_batches(step, peak, steps, warmup_steps, final_fraction, accumulation=4):
    """Every update counts four times, once for each of its micro-batches."""
    return learning_rate(accumulation * step, peak, steps, warmup_steps, final_fraction)


def decays_8x(step, peak, steps, warmup_steps, final_fraction):
    """After the warm-up, eight steps are counted for each one: once on every GPU."""
    return learning_rate(step + 7 * max(step - warmup_steps, 0), peak, steps, warmup_steps, final_fraction)


def to_the_maximum(step, peak, steps, warmup_steps, final_fraction):
    """Final and peak exchanged in the cosine: after the warm-up it drops, and climbs back."""
    warmed = learning_rate(step, peak, steps, warmup_steps, final_fraction)
    return warmed if step < warmup_steps else peak + peak * final_fraction - warmed


def oscillates(step, peak, steps, warmup_steps, final_fraction, periods=4):
    """The cosine is given the length of a short epoch, and nothing ends it there: it goes up again, and down, and up."""
    if step < warmup_steps:
        return learning_rate(step, peak, steps, warmup_steps, final_fraction)
    progress = 2 * periods * (step - warmup_steps) / max(steps - warmup_steps, 1)
    return peak * (final_fraction + (1 - final_fraction) * _cosine(progress))


def restarts(step, peak, steps, warmup_steps, final_fraction):
    """The run was stopped after two thirds, and resumed with a counter that begins at 1 again."""
    stopped = 2 * steps // 3
    return learning_rate(step - stopped if step > stopped else step, peak, steps, warmup_steps, final_fraction)


def constant(step, peak, steps, warmup_steps, final_fraction):
    """Warm-up, and then the peak for ever."""
    return peak * min(step / warmup_steps, 1.0)


NINE = {  # what is wrong: its name above
    "clamped, not stretched": "clamped",
    "decays in the warm-up": "decays_in_warmup",
    "off by one": "off_by_one",
    "counts micro-batches": "micro_batches",
    "horizon 10 × too long": "horizon_10x",
    "starts again on resume": "restarts",
    "oscillates": "oscillates",
    "anneals to the maximum": "to_the_maximum",
    "decays 8 × too fast": "decays_8x",
}


def schedule_patch(name):
    """The patch that trains with another schedule, as lab.run takes it."""
    return {"minillama.train.learning_rate": f"lessons.museum.{name}"}


# ---- 10: no clipping, plain gradient descent, poisoned batches ----
def no_clip(grad, max_norm):
    """In place of clip_grad_norm: the norm, and nothing is done about it."""
    return float(np.sqrt(np.dot(grad, grad)))


def sgd_step(param, grad, m, v, step, lr, beta1, beta2, eps, weight_decay):
    """In place of AdamW: param - lr grad."""
    param -= lr * grad


POISONED, POISON = 10, 300  # every so many steps a batch is poisoned: this id and nothing else
_clean_batch = Mixture.batch


def poisoned_batch(mixture, step, rows):
    """In place of Mixture.batch: at every tenth step, one token all along, as a damaged file gives."""
    tokens, targets = _clean_batch(mixture, step, rows)
    if step % POISONED == 0:
        tokens, targets = np.full_like(tokens, POISON), np.full_like(targets, POISON)
    return tokens, targets
