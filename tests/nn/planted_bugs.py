"""Wrong backward passes, by name. Most of them still train: only a gradient check tells. The checks must reject every one.

Each entry: name -> (forward, wrong backward, differentiable inputs, further arguments), the inputs as gradcheck takes them.
"""
import math

import numpy as np

from minillama import nn

RNG = np.random.default_rng(7)
B, T, H, Dh, D, F, V = 2, 5, 3, 4, 6, 7, 11


def draw(*shape):
    return RNG.standard_normal(shape)


TOKENS = np.array([[1, 4, 4, 9, 1], [0, 4, 2, 2, 10]])
TARGETS = np.array([[4, 4, 9, 1, nn.IGNORE], [4, 2, 2, 10, 3]])
COS, SIN = nn.rope_tables(T, Dh, dtype=np.float64)
LINEAR = {"x": draw(B, T, D), "weight": draw(F, D)}
NORM = {"x": draw(B, T, D), "weight": draw(D)}
SWIGLU = {"gate": draw(B, T, F), "up": draw(B, T, F)}
QKV = {"q": draw(B, T, H, Dh), "k": draw(B, T, H, Dh), "v": draw(B, T, H, Dh)}
SQUARE_QKV = {name: draw(B, Dh, H, Dh) for name in "qkv"}  # T = Dh, where a forgotten transpose keeps its shape


def embedding(weight):
    return nn.embedding_forward(TOKENS, weight)


def cross_entropy(logits):
    return nn.cross_entropy_forward(logits, TARGETS)


def linear_without_token_sum(dout, cache):
    x, weight = cache
    return dout @ weight, dout[0].T @ x[0]


def linear_dweight_scaled(dout, cache):
    dx, dweight = nn.linear_backward(dout, cache)
    return dx, dweight / dout.shape[0]


def embedding_last_one_wins(dout, cache):
    tokens, weight = cache
    dweight = np.zeros_like(weight)
    dweight[tokens] += dout
    return dweight


def rmsnorm_mean_term_dropped(dout, cache):
    x, weight, rstd = cache
    return rstd * dout * weight, nn.rmsnorm_backward(dout, cache)[1]


def rmsnorm_gain_forgotten(dout, cache):
    x, weight, rstd = cache
    return nn.rmsnorm_backward(dout, (x, np.ones_like(weight), rstd))


def rmsnorm_sum_for_mean(dout, cache):
    x, weight, rstd = cache
    n, dn = x * rstd, dout * weight
    return rstd * (dn - n * (dn * n).sum(-1, keepdims=True)), nn.rmsnorm_backward(dout, cache)[1]


def rmsnorm_dweight_of_x(dout, cache):
    x, weight, rstd = cache
    return nn.rmsnorm_backward(dout, cache)[0], (dout * x).reshape(-1, x.shape[-1]).sum(0)


def rope_turned_forward(dout, cache):
    return nn.rope_forward(dout, *cache)[0]


def rope_rotate_half(dout, cache):
    cos, sin = cache
    a, b = np.split(dout, 2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate((a * cos + b * sin, b * cos - a * sin), -1)


def rope_one_position_late(dout, cache):
    cos, sin = cache
    return nn.rope_backward(dout, (np.roll(cos, 1, 0), np.roll(sin, 1, 0)))


def attention_variant(scale=True, row_sum=True, dk_transposed=True, dv_probs=True):
    def backward(dout, cache):
        q, k, v, (probs,), _ = cache
        qh, kh, vh, douth = (a.swapaxes(1, 2) for a in (q, k, v, dout))
        dprobs = douth @ vh.swapaxes(2, 3)
        dscores = probs * (dprobs - ((dprobs * probs).sum(-1, keepdims=True) if row_sum else 0))
        dscores = dscores / math.sqrt(q.shape[-1]) if scale else dscores
        dv = (probs.swapaxes(2, 3) if dv_probs else probs) @ douth
        dk = (dscores.swapaxes(2, 3) if dk_transposed else dscores) @ qh
        return tuple(a.swapaxes(1, 2) for a in (dscores @ kh, dk, dv))

    return backward


def attention_q_and_k_exchanged(dout, cache):
    dq, dk, dv = nn.attention_backward(dout, cache)
    return dk, dq, dv


def flash_without_delta(dout, cache):
    q, k, v, out, lse, tile = cache
    return nn.flash_attention_backward(dout, (q, k, v, np.zeros_like(out), lse, tile))


def flash_diagonal_only(dout, cache):
    q, k, v, _, _, tile = cache
    parts = [slice(i, i + tile) for i in range(0, q.shape[1], tile)]
    grads = []
    for part in parts:
        _, local = nn.flash_attention_forward(q[:, part], k[:, part], v[:, part], tile)
        grads.append(nn.flash_attention_backward(dout[:, part], local))
    return tuple(np.concatenate(pieces, 1) for pieces in zip(*grads))


def swiglu_gate_path_dropped(dout, cache):
    gate, up, sigmoid = cache
    return np.zeros_like(gate), dout * gate * sigmoid


def swiglu_slope_is_sigmoid(dout, cache):
    gate, up, sigmoid = cache
    return dout * up * sigmoid, dout * gate * sigmoid


def swiglu_exchanged(dout, cache):
    return nn.swiglu_backward(dout, cache)[::-1]


def cross_entropy_without_mean(dout, cache):
    return nn.cross_entropy_backward(dout, cache) * (TARGETS != nn.IGNORE).sum()


def cross_entropy_mean_over_all(dout, cache):
    return nn.cross_entropy_backward(dout, cache) * (TARGETS != nn.IGNORE).mean()


def cross_entropy_ignored_scored(dout, cache):
    probs, targets = cache
    return nn.cross_entropy_backward(dout, cache) + dout * probs * (targets == nn.IGNORE)[..., None] / 9


def cross_entropy_without_target(dout, cache):
    probs, targets = cache
    return dout * probs * (targets != nn.IGNORE)[..., None] / 9


def cross_entropy_forgets_dout(dout, cache):
    return nn.cross_entropy_backward(1.0, cache)


ATTENTION = (nn.attention_forward, nn.attention_backward)
BUGS = {
    "linear: one batch row only": (nn.linear_forward, linear_without_token_sum, LINEAR, ()),
    "linear: dweight averaged over the batch": (nn.linear_forward, linear_dweight_scaled, LINEAR, ()),
    "embedding: of repeated ids the last one wins": (embedding, embedding_last_one_wins, {"weight": draw(V, D)}, ()),
    "rmsnorm: mean term dropped": (nn.rmsnorm_forward, rmsnorm_mean_term_dropped, NORM, (1e-2,)),
    "rmsnorm: gain forgotten in dx": (nn.rmsnorm_forward, rmsnorm_gain_forgotten, NORM, (1e-2,)),
    "rmsnorm: sum instead of mean": (nn.rmsnorm_forward, rmsnorm_sum_for_mean, NORM, (1e-2,)),
    "rmsnorm: dweight of x, not of its normalisation": (nn.rmsnorm_forward, rmsnorm_dweight_of_x, NORM, (1e-2,)),
    "rope: backward turns forward": (nn.rope_forward, rope_turned_forward, {"x": QKV["q"]}, (COS, SIN)),
    "rope: rotate-half pairs in backward": (nn.rope_forward, rope_rotate_half, {"x": QKV["q"]}, (COS, SIN)),
    "rope: positions off by one": (nn.rope_forward, rope_one_position_late, {"x": QKV["q"]}, (COS, SIN)),
    "attention: 1/sqrt(Dh) missing": (nn.attention_forward, attention_variant(scale=False), QKV, ()),
    "attention: row sum of the softmax dropped": (nn.attention_forward, attention_variant(row_sum=False), QKV, ()),
    "attention: dk not transposed": (nn.attention_forward, attention_variant(dk_transposed=False), SQUARE_QKV, ()),
    "attention: dv not transposed": (nn.attention_forward, attention_variant(dv_probs=False), SQUARE_QKV, ()),
    "attention: dq and dk exchanged": (nn.attention_forward, attention_q_and_k_exchanged, QKV, ()),
    "flash: delta forgotten": (nn.flash_attention_forward, flash_without_delta, QKV, (2,)),
    "flash: only the diagonal tiles": (nn.flash_attention_forward, flash_diagonal_only, QKV, (2,)),
    "swiglu: gate path dropped": (nn.swiglu_forward, swiglu_gate_path_dropped, SWIGLU, ()),
    "swiglu: slope of silu taken for sigmoid": (nn.swiglu_forward, swiglu_slope_is_sigmoid, SWIGLU, ()),
    "swiglu: dgate and dup exchanged": (nn.swiglu_forward, swiglu_exchanged, SWIGLU, ()),
    "cross_entropy: without 1/N": (cross_entropy, cross_entropy_without_mean, {"logits": draw(B, T, V)}, ()),
    "cross_entropy: mean over ignored tokens too": (cross_entropy, cross_entropy_mean_over_all, {"logits": draw(B, T, V)}, ()),
    "cross_entropy: ignored tokens get a gradient": (cross_entropy, cross_entropy_ignored_scored, {"logits": draw(B, T, V)}, ()),
    "cross_entropy: target not subtracted": (cross_entropy, cross_entropy_without_target, {"logits": draw(B, T, V)}, ()),
    "cross_entropy: dout forgotten": (cross_entropy, cross_entropy_forgets_dout, {"logits": draw(B, T, V)}, ()),
}
