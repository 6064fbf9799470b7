"""Lesson 07: what the learner writes, and the ways it goes wrong. Equation numbers are the lesson's."""
from types import SimpleNamespace

import numpy as np

from minillama import nn

from ..check import Exercise, Mistake


def residual_backward(dout, jacobians):
    """d (L + 1, D): the gradient on the stream before branch 0, 1, ..., and after the last one, where it is dout (D,).

    jacobians: (L, D, D), of each branch f at its own input: [i, j] is how much output i grows with input j.
    """
    d = [dout]
    for J in jacobians[::-1]:
        d.append(d[-1] + J.T @ d[-1])
    return np.array(d[::-1])


def block_forward(x, params, n_heads, ops):
    """h and out (B, T, D): the stream after attention and after the feed-forward, from x (B, T, D).

    ops: the forward functions rmsnorm(x, gain), linear(x, weight), rope(q), attention(q, k, v), swiglu(gate, up), each
         returning its output alone. rope and attention work on (B, T, H, Dh).
    """
    heads = (*x.shape[:2], n_heads, -1)
    n = ops.rmsnorm(x, params["attention_norm"])
    q = ops.rope(ops.linear(n, params["wq"]).reshape(heads))
    k = ops.rope(ops.linear(n, params["wk"]).reshape(heads))
    v = ops.linear(n, params["wv"]).reshape(heads)
    a = ops.attention(q, k, v).reshape(x.shape)
    h = x + ops.linear(a, params["wo"])
    m = ops.rmsnorm(h, params["ffn_norm"])
    f = ops.swiglu(ops.linear(m, params["w1"]), ops.linear(m, params["w3"]))
    out = h + ops.linear(f, params["w2"])
    return h, out


def block_backward(dout, back):
    """dm, dh, dn and dx (B, T, D), from dout (B, T, D).

    back: the backward functions of this block's ops, from the gradient of an op's output to that of its input: back.w2(d),
          back.swiglu(df) -> dgate, dup, back.w1, back.w3, back.ffn_norm, back.wo, back.attention(da) -> dq, dk, dv,
          back.rope (for dq and dk), back.wq, back.wk, back.wv, back.attention_norm. They take care of the heads' axis.
    """
    df = back.w2(dout)
    dgate, dup = back.swiglu(df)
    dm = back.w1(dgate) + back.w3(dup)
    dh = dout + back.ffn_norm(dm)
    da = back.wo(dh)
    dq, dk, dv = back.attention(da)
    dn = back.wq(back.rope(dq)) + back.wk(back.rope(dk)) + back.wv(dv)
    dx = dh + back.attention_norm(dn)
    return dm, dh, dn, dx


def count_params(dim, n_layers, vocab_size, multiple_of):
    """hidden_dim, and the number of parameters of the whole model: whole numbers."""
    hidden_dim = 8 * dim // 3
    hidden_dim = multiple_of * int(np.ceil(hidden_dim / multiple_of))
    attention = 4 * dim * dim
    ffn = 3 * dim * hidden_dim
    gains = 2 * dim
    embedding = vocab_size * dim
    head = vocab_size * dim
    params = embedding + n_layers * (attention + ffn + gains) + dim + head
    return hidden_dim, params


# ---- what the functions are called with ----
ROWS, TIME, HEADS, HEAD_DIM, HIDDEN = 2, 5, 3, 4, 7
DIM, EPS = HEADS * HEAD_DIM, 0.3
SHAPES = {"attention_norm": (DIM,), "wq": (DIM, DIM), "wk": (DIM, DIM), "wv": (DIM, DIM), "wo": (DIM, DIM),
          "ffn_norm": (DIM,), "w1": (HIDDEN, DIM), "w2": (DIM, HIDDEN), "w3": (HIDDEN, DIM)}
COS, SIN = nn.rope_tables(TIME, HEAD_DIM, dtype=np.float64)


def _op(forward, *extra):
    return lambda *arrays: forward(*arrays, *extra)[0]


OPS = SimpleNamespace(rmsnorm=_op(nn.rmsnorm_forward, EPS), linear=_op(nn.linear_forward), rope=_op(nn.rope_forward, COS, SIN),
                      attention=_op(nn.attention_forward), swiglu=_op(nn.swiglu_forward))


def _params(rng):
    return {name: rng.standard_normal(shape) * (0.5 if len(shape) > 1 else 1) + (len(shape) == 1) for name, shape in SHAPES.items()}


def _residual_inputs(rng):
    return rng.standard_normal(4), 0.6 * rng.standard_normal((3, 4, 4))


def _forward_inputs(rng):
    return rng.standard_normal((ROWS, TIME, DIM)), _params(rng), HEADS, OPS


def _backward_inputs(rng):
    x, params, _, ops = _forward_inputs(rng)
    config = SimpleNamespace(n_heads=HEADS, head_dim=HEAD_DIM, norm_eps=EPS)
    _, cache = nn.block_forward(x, params, COS, SIN, config)
    attention_norm, wq, wk, wv, rope, _, attention, wo, ffn_norm, w1, w3, swiglu, w2 = cache

    def linear(cache):
        return lambda d: nn.linear_backward(d.reshape(ROWS, TIME, -1), cache)[0]

    back = SimpleNamespace(
        w2=linear(w2), swiglu=lambda d: nn.swiglu_backward(d, swiglu), w1=linear(w1), w3=linear(w3),
        ffn_norm=lambda d: nn.rmsnorm_backward(d, ffn_norm)[0], wo=linear(wo),
        attention=lambda d: nn.attention_backward(d.reshape(ROWS, TIME, HEADS, HEAD_DIM), attention), rope=lambda d: nn.rope_backward(d, rope),
        wq=linear(wq), wk=linear(wk), wv=linear(wv), attention_norm=lambda d: nn.rmsnorm_backward(d, attention_norm)[0])
    return rng.standard_normal((ROWS, TIME, DIM)), back


def _count_inputs(rng):
    return (4, 3, 9, 3) if rng.random() < 0.4 else (6, 2, 3, 6)  # one of each in the two draws


def _backward_terms(dout, back):
    dm, dh, dn, _ = block_backward(dout, back)
    dgate, dup = back.swiglu(back.w2(dout))
    dq, dk, dv = back.attention(back.wo(dh))
    return {
        "dm": {"w1's gradient": (back.w1(dgate), 1), "w3's gradient": (back.w3(dup), 1)},
        "dh": {"dout, the skip's gradient,": (dout, 1), "the norm's gradient": (back.ffn_norm(dm), 1)},
        "dn": {"wq's gradient": (back.wq(back.rope(dq)), 1), "wk's gradient": (back.wk(back.rope(dk)), 1), "wv's gradient": (back.wv(dv), 1)},
        "dx": {"dh, the skip's gradient,": (dh, 1), "the norm's gradient": (back.attention_norm(dn), 1), "dout": (dout, 0)},
    }


STEP = "d[-1] + J.T @ d[-1]"
N, M = 'n = ops.rmsnorm(x, params["attention_norm"])', 'm = ops.rmsnorm(h, params["ffn_norm"])'
AFTER, OUT = 'h = x + ops.linear(a, params["wo"])', 'out = h + ops.linear(f, params["w2"])'
Q, K = 'q = ops.rope(ops.linear(n, params["wq"])', 'k = ops.rope(ops.linear(n, params["wk"])'
GATE_UP = 'ops.linear(m, params["w1"]), ops.linear(m, params["w3"])'
DM, DN = "back.w1(dgate) + back.w3(dup)", "back.wq(back.rope(dq)) + back.wk(back.rope(dk)) + back.wv(dv)"
DH, DX = "dout + back.ffn_norm(dm)", "dh + back.attention_norm(dn)"
ROUNDED = "multiple_of * int(np.ceil(hidden_dim / multiple_of))"

EXERCISES = {
    "07.residual_backward": Exercise(
        residual_backward, ("d",), _residual_inputs,
        (
            Mistake("skip-dropped", STEP, "J.T @ d[-1]", "the gradient of the skip is dropped: the I of I + J in (7.3) is missing, and the rest shrinks or grows with every branch"),
            Mistake("branch-dropped", STEP, "d[-1]", "the gradient passes the skips alone, and no branch sends anything back (7.3)"),
            Mistake("not-transposed", "J.T @", "J @", "J is not transposed: an input collects from all outputs, so the sum runs over J's first index (7.3)"),
            Mistake("forward-order", "jacobians[::-1]", "jacobians", "the branches are taken from the first to the last; backward begins at the last one"),
            Mistake("branch-from-the-top", STEP, "d[-1] + J.T @ dout", "every branch is given dout, the gradient after the *last* one; it must get the one after itself (7.3)"),
            Mistake("skip-from-the-top", STEP, "dout + J.T @ d[-1]", "every skip adds dout, the gradient after the *last* branch; it must add the one after its own (7.3)"),
            Mistake("averaged", STEP, "(d[-1] + J.T @ d[-1]) / 2", "the two ways are averaged; gradients of several uses add up (7.1)"),
            Mistake("sign", STEP, "d[-1] - J.T @ d[-1]", "the branch's gradient is subtracted; it is added, as the branch was (7.3)"),
            Mistake("not-turned-round", "d[::-1]", "d", "the gradients are in the order of backward; the first row must be that before branch 0"),
        ),
    ),
    "07.block_forward": Exercise(
        block_forward, ("h", "out"), _forward_inputs,
        (
            Mistake("skip-1-missing", AFTER, 'h = ops.linear(a, params["wo"])', "x is not added: attention's output replaces the stream (7.5)"),
            Mistake("skip-2-missing", OUT, 'out = ops.linear(f, params["w2"])', "h is not added: the feed-forward's output replaces the stream (7.6)"),
            Mistake("norm-as-residual-1", AFTER, AFTER.replace("x +", "n +"), "the skip starts at the normalised n; what is carried on is x itself (7.5)"),
            Mistake("norm-as-residual-2", OUT, OUT.replace("h +", "m +"), "the skip starts at the normalised m; what is carried on is h itself (7.6)"),
            Mistake("skip-over-both", OUT, OUT.replace("h +", "x +"), "the second skip starts at x: then what attention wrote is lost from the stream (7.6)"),
            Mistake("parallel", "ops.rmsnorm(h,", "ops.rmsnorm(x,", "the second norm reads x, as in the parallel block of GPT-J; in LLaMA the feed-forward sees what attention wrote (7.6)"),
            Mistake("n-for-m", M, "m = n", "the feed-forward reads n, the input of attention; it has a norm of its own, of h (7.6)"),
            Mistake("post-norm", (N, AFTER, M, OUT),
                    ("n = x", 'h = ops.rmsnorm(x + ops.linear(a, params["wo"]), params["attention_norm"])', "m = h", 'out = ops.rmsnorm(h + ops.linear(f, params["w2"]), params["ffn_norm"])'),
                    "the norm comes after each sum, as in the transformer of 2017; LLaMA normalises what a branch reads (7.5)"),
            Mistake("norm-1-missing", N, "n = x", "attention reads x without a norm (7.5)"),
            Mistake("norm-2-missing", M, "m = h", "the feed-forward reads h without a norm (7.6)"),
            Mistake("gains-exchanged", (N, M), (N.replace("attention", "ffn"), M.replace("ffn", "attention")), "the gains of the two norms are exchanged"),
            Mistake("w1-w3-exchanged", GATE_UP, GATE_UP.replace("w1", "w").replace("w3", "w1").replace('"w"', '"w3"'),
                    "w1 and w3 are exchanged: w1 makes the gate, which passes silu, and w3 what it is multiplied with (7.6)"),
            Mistake("wq-wk-exchanged", (Q, K), (Q.replace("wq", "wk"), K.replace("wk", "wq")), "wq and wk are exchanged: token i then asks with its key (7.5)"),
            Mistake("wo-missing", AFTER, "h = x + a", "wo is missing: the heads' outputs are added to the stream without being mixed (7.5)"),
            Mistake("v-turned", 'v = ops.linear(n, params["wv"]).reshape(heads)', 'v = ops.rope(ops.linear(n, params["wv"]).reshape(heads))', "RoPE turns v as well; it turns q and k alone (7.5)"),
            Mistake("k-not-turned", 'ops.rope(ops.linear(n, params["wk"]).reshape(heads))', 'ops.linear(n, params["wk"]).reshape(heads)', "RoPE turns q and not k: a score then knows the position of the query, and not the distance (7.5)"),
        ),
    ),
    "07.block_backward": Exercise(
        block_backward, ("dm", "dh", "dn", "dx"), _backward_inputs,
        (
            Mistake("m-overwritten", DM, "back.w3(dup)", "the second use of m overwrites the first; m went into w1 and w3, so there is a `+` (7.7)"),
            Mistake("m-gate-only", DM, "back.w1(dgate)", "w3's part is missing in dm: m went into w1 and w3 (7.7)"),
            Mistake("dgate-dup-exchanged", "dgate, dup =", "dup, dgate =", "dgate goes through w3 and dup through w1; it must be the other way round (7.7)"),
            Mistake("skip-h-dropped", DH, "back.ffn_norm(dm)", "the skip around the feed-forward has no gradient: dout itself is missing in dh (7.8)"),
            Mistake("skip-x-dropped", DX, "back.attention_norm(dn)", "the skip around attention has no gradient: dh itself is missing in dx (7.10)"),
            Mistake("skip-from-the-top", DX, "dout + back.attention_norm(dn)", "the skip around attention carries dout in place of dh: what came back through the feed-forward is lost (7.10)"),
            Mistake("dout-twice", DX, "dout + dh + back.attention_norm(dn)", "dout is added a second time; dh already holds it (7.10)"),
            Mistake("wo-gets-dout", "back.wo(dh)", "back.wo(dout)", "attention is given dout in place of dh: it also acts through the feed-forward that comes after it (7.9)"),
            Mistake("n-overwritten", DN, "back.wv(dv)", "each use of n overwrites the one before, and wv's is left; n went into wq, wk and wv, so there are two `+` (7.9)"),
            Mistake("v-forgotten", " + back.wv(dv)", "", "wv's part is missing in dn: n went into wq, wk and wv (7.9)"),
            Mistake("n-averaged", DN, f"({DN}) / 3", "the three uses of n are averaged; they add up (7.1)"),
            Mistake("norm-2-passed-by", DH, "dout + dm", "dm is added to the stream as it is; it must go back through the norm first (7.8)"),
            Mistake("norm-1-passed-by", DX, "dh + dn", "dn is added to the stream as it is; it must go back through the norm first (7.10)"),
            Mistake("skip-through-the-norm", DH, "back.ffn_norm(dout + dm)", "dout goes through the norm as well, as in a post-norm block; the skip passes it by (7.8)"),
            Mistake("dq-dk-exchanged", "dq, dk, dv =", "dk, dq, dv =", "dq and dk are exchanged: attention returns dq first (7.9)"),
            Mistake("not-turned-back", ("back.rope(dq)", "back.rope(dk)"), ("dq", "dk"), "RoPE is left out on the way back (7.9)"),
            Mistake("dv-turned", "back.wv(dv)", "back.wv(back.rope(dv))", "dv is turned as well; v never was (7.9)"),
        ),
        _backward_terms,
    ),
    "07.count_params": Exercise(
        count_params, ("hidden_dim", "params"), _count_inputs,
        (
            Mistake("rounded-down", ROUNDED, "multiple_of * (hidden_dim // multiple_of)", "hidden_dim is rounded down to a multiple; (7.12) rounds up"),
            Mistake("rounded-to-nearest", ROUNDED, "multiple_of * round(hidden_dim / multiple_of)", "hidden_dim is rounded to the nearest multiple; (7.12) rounds up"),
            Mistake("not-rounded", ROUNDED, "hidden_dim", "hidden_dim is not made a multiple of anything (7.12)"),
            Mistake("four-times", "8 * dim // 3", "4 * dim", "the feed-forward is 4 D wide, as with two matrices; with three it is 2/3 of that (7.12)"),
            Mistake("head-tied", "+ dim + head", "+ dim", "the output head is not counted, as if it were the embedding; LLaMA's is a matrix of its own (7.13)"),
            Mistake("final-norm-forgotten", "+ dim + head", "+ head", "the gains of the last norm are not counted (7.13)"),
            Mistake("gains-forgotten", "(attention + ffn + gains)", "(attention + ffn)", "the norm gains of the blocks are not counted (7.13)"),
            Mistake("one-gain", "gains = 2 * dim", "gains = dim", "a block has two norms, with D gains each, and one is counted (7.13)"),
            Mistake("wo-forgotten", "4 * dim * dim", "3 * dim * dim", "attention has four matrices, wq, wk, wv and wo, and three are counted (7.13)"),
            Mistake("two-matrices", "3 * dim * hidden_dim", "2 * dim * hidden_dim", "SwiGLU has three matrices, w1, w2 and w3, and two are counted (7.13)"),
            Mistake("biases", ("4 * dim * dim", "3 * dim * hidden_dim"), ("4 * dim * (dim + 1)", "3 * dim * hidden_dim + 2 * hidden_dim + dim"), "every matrix of a block has a bias; LLaMA has none (7.13)"),
            Mistake("one-layer", "n_layers * (attention", "(attention", "one block is counted, and there are L of them (7.13)"),
        ),
    ),
}
