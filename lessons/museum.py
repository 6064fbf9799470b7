"""What experiments put in place of an op: by name, so that worker processes find it. `lessons/lab.py` patches it in.

The wrong gradients are those of tests/nn/planted_bugs.py wherever they stand there: one list for the lessons and for the tests.
"""
import importlib.util
from pathlib import Path

import numpy as np

from minillama import nn
from minillama.text.mixture import Mixture


def _load_planted_bugs():
    """tests/nn/planted_bugs.py, by its place in the checkout: it is no part of a package."""
    path = Path(__file__).resolve().parents[1] / "tests" / "nn" / "planted_bugs.py"
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
