# %% [markdown] lang="en"
# # 07 · Assembling LLaMA
#
# **Question.** How do six ops become LLaMA, and how do you know that the whole gradient is right?
#
# After this lesson you can write a block forward and backward, derive the gradient on a residual stream, and say from a table of errors which `+` is missing. You can also count the parameters of any LLaMA to the last one, and predict how large the stream grows with depth.
#
# *Needs:* [02 · Gradients](02_gradients.ipynb), [03 · RMSNorm](03_rmsnorm.ipynb), [05 · Causal attention](05_attention.ipynb). *Paper:* LLaMA §2.2, §2.4, tables 2 and 15. *Code:* [`minillama/nn/block.py`](../minillama/nn/block.py), [`minillama/nn/model.py`](../minillama/nn/model.py). *Time:* 40 minutes to read and solve, about a minute to run.

# %%
import sys; sys.path[:0] = ["..", "../.."]  # the repository, from lessons/ or lessons/exercises/

import numpy as np

from lessons import FAST, check, claim, lab, plt, record
from lessons.museum import llama as wiring
from minillama import nn
from minillama.config import PRESETS, ModelConfig, TrainConfig
from minillama.evaluate import mix_floor
from minillama.nn.gradcheck import check_directions, numerical_gradient
from minillama.report.plan import plan

# %% [markdown] lang="en"
# ## 1 · The only new thing is a plus
#
# Embedding, linear layer, RMSNorm, RoPE, attention, SwiGLU: with these six ops a LLaMA makes its logits. Each has its backward. What is left is to connect them. That needs one rule, which [02](02_gradients.ipynb) met already, for a value that is **used more than once**:
#
# $$y = g(a),\quad z = k(a)\qquad\Rightarrow\qquad da = \Bigl(\frac{\partial y}{\partial a}\Bigr)^{\!\top} dy + \Bigl(\frac{\partial z}{\partial a}\Bigr)^{\!\top} dz \tag{7.1}$$
#
# Each use sends a gradient back, and they **add up**.

# %% [markdown] lang="en"
# By hand, with numbers: $h = x + x^2$ and $out = h + 3h$ at $x = 2$, with $dout = 1$. Backward: $dh = 1 + 3 = 4$, and $dx = dh + 2x\,dh = 4 + 16 = 20$.

# %%
x = np.array([2.0])
out = lambda: float((x + x**2)[0] * 4)
dh = 1 + 3
print("by hand:", dh + 2 * 2 * dh, "  measured:", numerical_gradient(out, x)[0].round(6))

# %% [markdown] lang="en"
# ## 2 · A gradient on the residual stream
#
# A LLaMA has the plus signs of that example. Its **residual stream** $x$ is a vector per token. Every branch $f_l$, attention or feed-forward, reads it and adds something to it:
#
# $$x_{l+1} = x_l + f_l(x_l) \tag{7.2}$$
#
# So $x_l$ has two uses: the skip, whose Jacobian is the identity $I$, and the branch, whose Jacobian we call $J_l$. With (7.1):
#
# $$dx_l = (I + J_l)^\top dx_{l+1} = \underbrace{dx_{l+1}}_{\text{skip}} + \underbrace{J_l^\top dx_{l+1}}_{\text{branch}} \tag{7.3}$$

# %%
rng = np.random.default_rng(0)
weights = 0.5 * rng.standard_normal((2, 5, 5))
x0, dout = rng.standard_normal((2, 5))
branch = lambda l, x: np.tanh(weights[l] @ x)
jacobian = lambda l, x: (1 - branch(l, x) ** 2)[:, None] * weights[l]
x1 = x0 + branch(0, x0)
last = lambda: float(dout @ (x1 + branch(1, x1)))
print("(7.3) is off by", np.abs(dout + jacobian(1, x1).T @ dout - numerical_gradient(last, x1)).max())

# %% [markdown] lang="en"
# Do it twice, and multiply out. Two branches make four ways from the end to the start:
#
# $$dx_0 = (I + J_0)^\top (I + J_1)^\top dx_2 = \bigl(I + J_0^\top + J_1^\top + J_0^\top J_1^\top\bigr)\, dx_2 \tag{7.4}$$
#
# $n$ branches make $2^n$ ways, and **one of them is always $I$**: no branch, no weight, no norm on it. Along it, the gradient reaches the first layer unchanged, however deep the model is.

# %%
J0, J1 = jacobian(0, x0), jacobian(1, x1)
whole = lambda: float(dout @ (x0 + branch(0, x0) + branch(1, x0 + branch(0, x0))))
ways = [dout, J0.T @ dout, J1.T @ dout, J0.T @ J1.T @ dout]
print("(7.4) is off by", np.abs(sum(ways) - numerical_gradient(whole, x0)).max())
print("lengths of the four ways:", [round(float(np.linalg.norm(way)), 2) for way in ways])

# %% [markdown] lang="en"
# ### Your turn: down the stream
#
# Write (7.3) for a stack of branches whose Jacobians are given, and return the gradient at every depth.

# %%
from lessons.checks.llama import residual_backward  # exercise

# %%
check("07.residual_backward", residual_backward)

# %% [markdown] lang="en"
# ## 3 · The block, forward
#
# One **block** has two branches. Each reads a *normalised copy* of the stream, and adds to the stream itself ($\odot$: entry by entry):
#
# $$n = \mathrm{norm}(x)\qquad h = x + W_o\,\mathrm{attention}\bigl(\mathrm{rope}(W_q n),\ \mathrm{rope}(W_k n),\ W_v n\bigr) \tag{7.5}$$
# $$m = \mathrm{norm}(h)\qquad out = h + W_2\,\bigl(\mathrm{silu}(W_1 m)\odot W_3 m\bigr) \tag{7.6}$$
#
# ```
#  x ─┬─ norm ─ n ─┬ wq ─ rope ┐                h ─┬─ norm ─ m ─┬ w1 ┐
#     │            ├ wk ─ rope ┼ attention ─ wo    │            │    ├ swiglu ─ w2
#     │            └ wv ───────┘            │      │            └ w3 ┘       │
#     └─────────────────────────────────── (+) ────┴─────────────────────── (+) ─ out
# ```

# %% [markdown] lang="en"
# Count the places where a line splits: at $x$, $n$, $h$ and $m$. The backward pass of the block will add at each of these four, and nowhere else.

# %%
config = ModelConfig(dim=4, n_layers=1, n_heads=2, vocab_size=5, multiple_of=3, max_seq_len=3, norm_eps=1e-2)
cos, sin = nn.rope_tables(3, config.head_dim, dtype=np.float64)
block = {name: 0.7 * rng.standard_normal(shape) + (len(shape) == 1) for name, shape in
         zip(nn.model.BLOCK_NAMES, [s for name, s in nn.param_shapes(config).items() if name.startswith("layers")])}
x, dout = rng.standard_normal((2, 1, 3, 4))  # (B, T, D)
norm = lambda x, name: nn.rmsnorm_forward(x, block[name], config.norm_eps)[0]
attention = lambda n: wiring.attention_half(n, block, cos, sin, config)[0]
ffn = lambda m: wiring.ffn_half(m, block)[0]

# %%
n = norm(x, "attention_norm")
h = x + attention(n)
m = norm(h, "ffn_norm")
out, cache = nn.block_forward(x, block, cos, sin, config)
print("(7.5) and (7.6) are off by", np.abs(h + ffn(m) - out).max())

# %% [markdown] lang="en"
# ### Your turn: the block
#
# All ops are given. The names say it: `attention_norm` is the gain of the first norm, `w1` is the gate, `w3` is up, `w2` is down.

# %%
from lessons.checks.llama import block_forward  # exercise

# %%
check("07.block_forward", block_forward)

# %% [markdown] lang="en"
# ## 4 · The same lines, backward
#
# We go from $out$ to $x$. The last line was $out = h + f$, with $f$ for the branch: both get $dout$. First the branch: back through $W_2$ and SwiGLU, which gives $dgate$ and $dup$. Both came from $m$, so here is the first **fork**, a place where the forward line splits:
#
# $$dm = W_1^\top dgate + W_3^\top dup \tag{7.7}$$

# %%
(_, w1), (_, w3) = (nn.linear_forward(m, block[name]) for name in ("w1", "w3"))
swiglu = nn.swiglu_forward(m @ block["w1"].T, m @ block["w3"].T)[1]
dgate, dup = nn.swiglu_backward(dout @ block["w2"], swiglu)
dm = dgate @ block["w1"] + dup @ block["w3"]
loss_m = lambda: float(((h + ffn(m)) * dout).sum())
print("(7.7) is off by", np.abs(dm - numerical_gradient(loss_m, m)).max())

# %% [markdown] lang="en"
# Then $h$, the second fork. The skip brings $dout$ as it is. The branch brings $dm$, through the backward of the norm, for which we write $\mathrm{norm}'$ ([03 · RMSNorm](03_rmsnorm.ipynb) derives it):
#
# $$dh = dout + \mathrm{norm}'(dm) \tag{7.8}$$

# %%
dh = dout + nn.rmsnorm_backward(dm, nn.rmsnorm_forward(h, block["ffn_norm"], config.norm_eps)[1])[0]
loss_h = lambda: float(((h + ffn(norm(h, "ffn_norm"))) * dout).sum())
print("(7.8) is off by", np.abs(dh - numerical_gradient(loss_h, h)).max())

# %% [markdown] lang="en"
# From here on, $dh$ takes the place of $dout$. Note that attention gets $dh$ and not $dout$: what it wrote was also read by the feed-forward. The third fork is $n$, with three uses. $dq$ and $dk$ first go through $\mathrm{rope}'$, which turns them back ([04](04_rope.ipynb)); $v$ was never turned:
#
# $$dn = W_q^\top\,\mathrm{rope}'(dq) + W_k^\top\,\mathrm{rope}'(dk) + W_v^\top dv \tag{7.9}$$

# %%
_, (_, _, _, rope_q, rope_k, kept, _) = wiring.attention_half(n, block, cos, sin, config)
dq, dk, dv = nn.attention_backward((dh @ block["wo"]).reshape(1, 3, 2, 2), kept)
dq, dk = nn.rope_backward(dq, rope_q), nn.rope_backward(dk, rope_k)
dn = sum(d.reshape(1, 3, 4) @ block[name] for d, name in ((dq, "wq"), (dk, "wk"), (dv, "wv")))
after = lambda h: h + ffn(norm(h, "ffn_norm"))
loss_n = lambda: float((after(x + attention(n)) * dout).sum())
print("(7.9) is off by", np.abs(dn - numerical_gradient(loss_n, n)).max())

# %% [markdown] lang="en"
# The last fork is $x$, again a skip and a norm:
#
# $$dx = dh + \mathrm{norm}'(dn) \tag{7.10}$$

# %%
dx = dh + nn.rmsnorm_backward(dn, nn.rmsnorm_forward(x, block["attention_norm"], config.norm_eps)[1])[0]
loss = lambda: float((nn.block_forward(x, block, cos, sin, config)[0] * dout).sum())
print("(7.10) is off by", np.abs(dx - numerical_gradient(loss, x)).max())
print("and from block_backward by", np.abs(dx - nn.block_backward(dout, cache)[0]).max())

# %% [markdown] lang="en"
# ### Your turn: the block, backward
#
# The ops' backward functions are given, each one from the gradient of its output to that of its input. (In the real code the same calls also return the gradients of the weights.)

# %%
from lessons.checks.llama import block_backward  # exercise

# %%
check("07.block_backward", block_backward)

# %% [markdown] lang="en"
# ## 5 · Is the whole gradient right?
#
# A model is an embedding, $L$ blocks, one more norm and the output head. We take a small one, with random gains and repeated ids. Every entry of every parameter's gradient is compared with finite differences. Then we leave out one `+` in all blocks, and compare again.

# %%
small = ModelConfig(dim=8, n_layers=2, n_heads=2, vocab_size=7, multiple_of=4, max_seq_len=5, norm_eps=1e-2)
rng = np.random.default_rng(1)
params = {k: rng.standard_normal(s) * (0.5 if len(s) > 1 else 1) for k, s in nn.param_shapes(small).items()}
tokens, targets = rng.integers(0, 4, (2, 3, 5))

# %%
def loss_of(params):
    return float(nn.cross_entropy_forward(nn.model_forward(tokens, params, small)[0], targets)[0])


def gradient(how="no_plus"):
    """The whole gradient, with a block_backward of lessons/museum/llama.py."""
    with lab.patched(wiring.patch_of(how)):
        logits, cache = nn.model_forward(tokens, params, small)
        return nn.model_backward(nn.cross_entropy_backward(1.0, nn.cross_entropy_forward(logits, targets)[1]), cache)

# %%
truth = {name: numerical_gradient(lambda: loss_of(params), p) for name, p in params.items()}
missing = {"right": "no_plus", "m: w3 overwrites w1": "no_m", "h: skip dropped": "no_h",
           "n: wv overwrites wq, wk": "no_n", "x: skip dropped": "no_x"}
within = ("w2", "w1", "w3", "ffn_norm", "wo", "wv", "wk", "wq", "attention_norm")
order = ["output", "norm", *(f"layers.{layer}.{name}" for layer in (1, 0) for name in within), "tok_embeddings"]
worst = lambda grads: [np.abs(grads[name] - truth[name]).max() / np.abs(truth[name]).max() for name in order]
errors = {name: worst(gradient(how)) for name, how in missing.items()}

# %%
fig, axis = plt.subplots(figsize=(7.2, 3.1))
image = axis.imshow(np.log10(np.array(list(errors.values())) + 1e-12), cmap="cividis", vmin=-8, vmax=0, aspect="auto")
axis.set(yticks=range(len(errors)), yticklabels=errors,
         title="The first yellow field names the missing + (dark: right)")
axis.set_xticks(range(len(order)), [name.replace("layers.", "") for name in order], rotation=90, fontsize=8)
axis.set_xlabel("parameters, in the order of backward →")
axis.grid(False)
fig.colorbar(image, ax=axis, shrink=0.9, label="log₁₀ of the\nrelative error")
plt.show()

# %% [markdown] lang="en"
# **Remember this picture.** Backward runs from left to right. A missing `+` leaves everything before it right, and makes everything after it wrong. So the first yellow field stands directly behind the fork. Behind $m$ comes `ffn_norm`, behind $h$ `wo`, behind $n$ `attention_norm`, and behind $x$ the layer below.

# %%
first_wrong = {}
for name, found in errors.items():
    bad = [tensor for tensor, error in zip(order, found) if not error <= 1e-7]
    first_wrong[name] = bad[0] if bad else "none"
    print(f"{name:<24} worst error {max(found):.0e}   first wrong: {first_wrong[name]}")
claim("with all four every parameter is right", max(errors["right"]) < 1e-7)
behind = {name: errors[name][order.index(first_wrong[name]):] for name in missing if name != "right"}
claim("the first wrong tensor names the fork",
      [first_wrong[name] for name in behind] == ["layers.1.ffn_norm", "layers.1.wo", "layers.1.attention_norm",
                                                 "layers.0.w2"])
claim("and what comes after it is wrong by more than 1 %", all(min(found) > 0.01 for found in behind.values()))

# %% [markdown] lang="en"
# A real model has too many entries for this. [08](08_wrong_gradients.ipynb) derives a cheaper way: the slope along a random direction through all parameters at once. Each direction costs two evaluations of the loss. It tells whether a gradient is right; the table tells where it is wrong.

# %%
print("right\n" + str(check_directions(loss_of, params, gradient(), directions=2)))
print("m: w3 overwrites w1\n" + str(check_directions(loss_of, params, gradient("no_m"), directions=2)))
passed = {name: check_directions(loss_of, params, gradient(how), directions=2).passed for name, how in missing.items()}
claim("two directions pass the right one and reject the other four",
      all(found == (name == "right") for name, found in passed.items()))

# %% [markdown] lang="en"
# ## 6 · Would the loss have told you?
#
# We train with each of them: the forward pass is right, one `+` is missing on the way back. For comparison, one model has no skips at all, forward or backward. The excess is loss minus the text's entropy floor; a dot is a seed.

# %%
plus = {"right": {}, "m: w3 overwrites w1": "no_m", "n: wv overwrites wq, wk": "no_n", "h: skip dropped": "no_h",
        "x: skip dropped": "no_x", "both skips dropped": "no_skips", "no skips forward either": "no_skip"}
arms = {name: {"patch": wiring.patch_of(how)} if how else {} for name, how in plus.items()}
seeds = 1 if FAST else 3
trained = lab.run(arms, seeds=seeds, steps=150, evaluations=1)
lab.table(trained)

# %% [markdown] lang="en"
# And does depth still help? We train the right model, and the one whose two skips carry no gradient, with 1, 2, 4 and 6 layers:

# %%
depths = (1, 4, 6)  # and 2, from above
dropped = {"patch": wiring.patch_of("no_skips")}
by_depth = lab.run({f"{name}, {L} layers": {"n_layers": L, **arm} for L in depths
                    for name, arm in (("right", {"lr": 1e-2}), ("dropped", dropped))},
                   seeds=seeds, steps=150, evaluations=1)
by_depth |= {"right, 2 layers": trained["right"], "dropped, 2 layers": trained["both skips dropped"]}
depths = (1, 2, 4, 6)
# (depths, seeds)
deep = {name: np.array([by_depth[f"{name}, {L} layers"].final for L in depths]) for name in ("right", "dropped")}

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.4), width_ratios=(1, 1.05))
lab.plot_dots(left, trained, {"right": lab.COLOURS[2]} | dict.fromkeys(list(plus)[1:], lab.COLOURS[1]))
left.set(xlim=(0, None), title="One + missing, 2 layers")
left.set_xlabel("excess after 150 steps (nats/token)", fontsize=9)
for found, colour, label in zip(deep.values(), (lab.COLOURS[2], lab.COLOURS[1]), ("right", "skips carry no gradient")):
    right.plot(depths, found.mean(1), "o-", color=colour, markersize=4, label=label)
    right.fill_between(depths, found.min(1), found.max(1), color=colour, alpha=0.2, linewidth=0)
right.set(xlabel="layers", xticks=depths, ylabel="excess (nats/token)", ylim=(0, None),
          title="Without the skip, depth is wasted")
right.legend(loc="lower left")
plt.show()

# %% [markdown] lang="en"
# An overwritten fork hardly shows: {{no_m:.2f}} and {{no_n:.2f}} against {{right:.2f}}. A dropped skip costs more, {{no_h:.2f}} and {{no_x:.2f}}. But who would notice, without the right one beside it? In deeper models the loss is larger. From one layer to six, the right model goes from {{one_right:.2f}} to {{deep_right:.2f}}, the other one from {{one_dropped:.2f}} to {{deep_dropped:.2f}}: **without the skips' gradient, no added layer helps.**

# %%
record(right=trained["right"].mean, **{how: trained[name].mean for name, how in plus.items() if how})
for name in deep:
    record(**{f"one_{name}": deep[name][0].mean(), f"deep_{name}": deep[name][-1].mean()})
right_band, band = trained["right"].band, lambda name: trained[name].band
for name in ("m: w3 overwrites w1", "n: wv overwrites wq, wk"):
    claim(f"{name}: costs less than 0.15 nats/token", abs(trained[name].mean - trained["right"].mean) < 0.15)
claim("each dropped skip is worse at every seed", all(band(name)[0] > right_band[1] + 0.05 for name in list(plus)[3:]),
      fast=False)
claim("without skips forward either, almost nothing is learned", band("no skips forward either")[0] > 2)
claim("six layers are better than one, at every seed, where the skips carry",
      deep["right"][-1].max() + 0.1 < deep["right"][0].min(), fast=False)
claim("where they do not, no deeper model beats the best one of one layer",
      deep["dropped"][1:].min() > deep["dropped"][0].min(), fast=False)

# %% [markdown] lang="en"
# ## 7 · How large the stream grows
#
# Before training, a branch adds something random. Random vectors are almost at right angles, so their mean squares add up. Each of the $2L$ branches reads a *normalised* copy, so all of them add about the same $s^2$ to the mean square $r_0^2$ of the stream. GPT-2's rule starts `wo` and `w2` smaller by $1/\sqrt{2L}$, so that each branch adds $s^2/2L$:
#
# $$r_L^2 = r_0^2 + 2L\,s^2 \qquad\text{with the rule:}\qquad r_L^2 = r_0^2 + 2L\cdot\frac{s^2}{2L} = r_0^2 + s^2 \tag{7.11}$$
#
# By hand, $r_0 = s = 1$ and $L = 32$: $\sqrt{65} = 8.1$ without the rule, and $\sqrt2 = 1.4$ with it, at any depth.

# %%
L = 32
deep_config = ModelConfig(dim=64, n_layers=L, n_heads=4, vocab_size=64, multiple_of=16, max_seq_len=32)
tables = nn.rope_tables(32, deep_config.head_dim)
rms = lambda a: float(np.sqrt((a * a).mean()))


def start(seed, rule):
    """Matrices of standard deviation 1/√D, gains of 1; with the rule, wo and w2 smaller."""
    rng = np.random.default_rng(seed)
    made = {k: np.ones(s, np.float32) if len(s) == 1 else rng.standard_normal(s, np.float32) / 8
            for k, s in nn.param_shapes(deep_config).items()}
    return {k: p / np.float32(np.sqrt(2 * L)) if rule and k.endswith((".wo", ".w2")) else p for k, p in made.items()}

# %%
def through(seed, rule=False, how="no_plus"):
    """rms of the stream and of a random gradient on it, before each block and after the last; the last block's s."""
    made, (x, dx) = start(seed, rule), np.random.default_rng(100 + seed).standard_normal((2, 4, 32, 64), np.float32)
    sizes, caches, grads = [rms(x)], [], [rms(dx)]
    with lab.patched(wiring.patch_of(how)):
        for layer in range(L):
            before = x
            x, cache = nn.model.block_forward(x, nn.model.layer_params(made, layer), *tables, deep_config)
            sizes, caches = [*sizes, rms(x)], [*caches, cache]
        for cache in reversed(caches):
            dx, _ = nn.model.block_backward(dx, cache)
            grads.insert(0, rms(dx))
    return np.array([sizes, grads]), rms(x - before) / np.sqrt(2)  # two branches a block

# %%
kinds = {"norm in the branch": (False, "no_plus"), "… and 1/√(2L)": (True, "no_plus"),
         "norm after the sum": (False, "post_norm"), "skips carry no gradient": (False, "no_skips")}
streams = {name: [through(seed, *kind) for seed in range(3)] for name, kind in kinds.items()}
s, (sizes, _) = streams["norm in the branch"][0][1], streams["norm in the branch"][0][0]
print(f"(7.11) says {np.sqrt(sizes[0] ** 2 + 2 * L * s**2):.2f}, measured {sizes[-1]:.2f}")
s, (sizes, _) = streams["… and 1/√(2L)"][0][1], streams["… and 1/√(2L)"][0][0]
print(f"with the rule {np.sqrt(sizes[0] ** 2 + 2 * L * s**2):.2f}, measured {sizes[-1]:.2f}")

# %%
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.6))
for (name, runs), colour in zip(streams.items(), (lab.COLOURS[0], lab.COLOURS[2], lab.COLOURS[3], lab.COLOURS[1])):
    found = np.array([curves for curves, _ in runs])  # (seeds, 2, L + 1)
    for k, axis in enumerate(axes):
        if k == 0 and name == "skips carry no gradient":
            continue  # its forward is the right one
        axis.plot(range(L + 1), found[:, k].mean(0), color=colour, label=name)
        axis.fill_between(range(L + 1), found[:, k].min(0), found[:, k].max(0), color=colour, alpha=0.2, linewidth=0)
axes[0].set(xlabel="blocks passed", ylabel="rms of the stream", ylim=(0, None), title="Forward: what is carried on")
axes[1].set(xlabel="block (backward runs to the left)", ylabel="rms of its gradient", yscale="log", ylim=(1e-12, 1e3),
            title="Backward: what arrives")
axes[1].legend(loc="lower left")
plt.show()

# %% [markdown] lang="en"
# Without the identity of (7.3), less than a millionth of the gradient is left after {{layers_lost:.0f}} blocks. With the norm *after* the sum, as in the transformer of 2017, the stream stays at 1. But its gradient must pass two norms in every block, and grows to {{post_gain:.0f}} times its size. With the norm in the branch it grows to {{pre_gain:.0f}} times, and with $1/\sqrt{2L}$ in addition to {{rule_gain:.1f}} times.

# %%
gain = {name: [curves[1, 0] / curves[1, -1] for curves, _ in runs] for name, runs in streams.items()}
lost = [int((curves[1, ::-1] > 1e-6 * curves[1, -1]).sum()) for curves, _ in streams["skips carry no gradient"]]
record(layers_lost=max(lost), post_gain=np.mean(gain["norm after the sum"]))
record(pre_gain=np.mean(gain["norm in the branch"]), rule_gain=np.mean(gain["… and 1/√(2L)"]))
final_size = {name: [curves[0, -1] for curves, _ in runs] for name, runs in streams.items()}
predicted = {name: [np.sqrt(curves[0, 0] ** 2 + 2 * L * s**2) for curves, s in runs] for name, runs in streams.items()}
for name in ("norm in the branch", "… and 1/√(2L)"):
    claim(f"{name}: (7.11) holds within a tenth", np.allclose(final_size[name], predicted[name], rtol=0.1))
claim("the rule keeps the stream below 1.6 at depth 32", max(final_size["… and 1/√(2L)"]) < 1.6)
claim("with the norm after the sum the gradient grows more, at every seed",
      min(gain["norm after the sum"]) > 3 * max(gain["norm in the branch"]))
claim("without the skips' gradient nothing arrives", max(gain["skips carry no gradient"]) < 1e-9)

# %% [markdown] lang="en"
# ## 8 · Norm before the branch, or after the sum?
#
# This is the first change that LLaMA's §2.2 names. Does it matter? At one learning rate you could "prove" either answer. So we take six layers, four rates, three seeds, both blocks. One run more has a long **warm-up**: its rate rises from near zero for half of the run ([10](10_stability.ipynb)).

# %%
rates = (1e-2, 3e-2, 6e-2, 2e-1)
post = {"patch": wiring.patch_of("post_norm"), "n_layers": 6}
arms = {f"before, lr {lr:g}": {"n_layers": 6, "lr": lr} for lr in rates}
arms |= {f"after, lr {lr:g}": {**post, "lr": lr} for lr in rates}
arms["after, lr 0.06, half of the run is warm-up"] = {**post, "lr": 6e-2, "warmup_steps": 75}
norms = lab.run(arms, seeds=seeds, steps=150, evaluations=1)
lab.table(norms)

# %%
tokenizer, shards = lab.text()
share = lambda shard: np.bincount(shard.tokens, minlength=tokenizer.vocab_size) / len(shard.tokens)
mix = sum(shard.share * share(shard.train) for shard in shards)  # how often each token occurs
frequencies = -sum(shard.share * (share(shard.val) * np.log(mix + 1e-9)).sum() for shard in shards) - mix_floor(shards)
print(f"a table of token frequencies has an excess of {frequencies:.2f}")

# %%
fig, axis = plt.subplots(figsize=(7.2, 3.6))
for place, colour, label in (("before", lab.COLOURS[2], "norm before the branch (LLaMA)"),
                             ("after", lab.COLOURS[1], "norm after the sum (2017)")):
    found = np.array([norms[f"{place}, lr {lr:g}"].final for lr in rates])
    axis.plot(rates, found.mean(1), "o-", color=colour, markersize=4, label=label)
    axis.fill_between(rates, found.min(1), found.max(1), color=colour, alpha=0.2, linewidth=0)
saved = norms["after, lr 0.06, half of the run is warm-up"].final
axis.plot([6e-2] * len(saved), saved, "s", color=lab.COLOURS[3], markersize=6, label="after the sum, long warm-up")
axis.axhline(frequencies, color="#888888", linewidth=0.8, linestyle=":")
axis.text(rates[0], frequencies, "knows how often each token occurs, and nothing else", va="bottom", fontsize=9,
          color="#444444")
axis.set(xscale="log", xlabel="peak learning rate", ylabel="excess after 150 steps (nats/token)", ylim=(0, 4.4))
axis.set_title("The norm in the branch buys the high learning rates")
axis.set_xticks(rates, [f"{lr:g}" for lr in rates])
axis.minorticks_off()
axis.legend(loc="center left", bbox_to_anchor=(0, 0.62))
plt.show()

# %% [markdown] lang="en"
# At 0.01 and 0.03 there is no difference; at 0.03, {{before_3e2:.2f}} and {{after_3e2:.2f}}. At 0.06 all three runs with the norm after the sum end at {{after_6e2:.2f}}. That is what a table of token frequencies gives, {{frequencies:.2f}}: they have learned nothing else. With the long warm-up they reach {{saved:.2f}}. LLaMA's block trains at every rate here.

# %%
final = lambda place, lr: norms[f"{place}, lr {lr:g}"].final
record(before_3e2=final("before", 3e-2).mean(), after_3e2=final("after", 3e-2).mean(),
       after_6e2=final("after", 6e-2).mean())
record(frequencies=frequencies, saved=saved.mean())
apart = [abs(final("before", lr).mean() - final("after", lr).mean()) for lr in (1e-2, 3e-2)]
claim("at lr 0.01 and 0.03 they are within 0.1 nats/token", max(apart) < 0.1, fast=False)
beyond = [np.abs(final("after", lr) - frequencies).max() for lr in (6e-2, 2e-1)]
claim("at 0.06 and 0.2, with the norm after the sum, every run knows the frequencies and no more", max(beyond) < 0.3,
      fast=False)
claim("with the norm before the branch, every run at every rate trains",
      max(final("before", lr).max() for lr in rates) < 1.6, fast=False)
claim("a long warm-up saves the norm after the sum at 0.06", saved.max() < 1.6, fast=False)

# %% [markdown] lang="en"
# ## 9 · Counting to 65 billion
#
# SwiGLU has three matrices where a plain feed-forward has two, so its width is $\frac23$ of the usual $4D$. As in (6.9), the fraction is dropped, and the result rounded **up** to a multiple that suits the hardware:
#
# $$F = \mathrm{multiple}\cdot\Bigl\lceil \lfloor 8D/3 \rfloor / \mathrm{multiple} \Bigr\rceil \tag{7.12}$$

# %% [markdown] lang="en"
# Now count. Embedding and head have $VD$ each (they are two matrices, not one). Each of the $L$ blocks has four matrices of attention, three of SwiGLU and the gains of two norms. Then there is the last norm's gain:
#
# $$N = 2VD + L\,(4D^2 + 3DF + 2D) + D \tag{7.13}$$
#
# By hand, $D = 4$, $L = 3$, $V = 9$, multiple 3: $F = 3\lceil 10/3\rceil = 12$, and $N = 72 + 3\,(64 + 144 + 8) + 4 = 724$.

# %%
tiny = ModelConfig(dim=4, n_layers=3, n_heads=2, vocab_size=9, multiple_of=3)
print("by hand 12 and 724; the model has", tiny.hidden_dim, "and", sum(p.size for p in nn.init_params(tiny).values()))
for name in ("7B", "13B", "33B", "65B"):
    c = ModelConfig(**PRESETS[name].model)
    V, D, F = c.vocab_size, c.dim, c.hidden_dim
    N = 2 * V * D + c.n_layers * (4 * D**2 + 3 * D * F + 2 * D) + D
    print(f"(7.13) {name:>3}: F = {F:>5}, N = {N:>14,}, off by {N - nn.count_params(c)}")

# %% [markdown] lang="en"
# ### Your turn: count
#
# Write (7.12) and (7.13).

# %%
from lessons.checks.llama import count_params  # exercise

# %%
check("07.count_params", count_params)

# %% [markdown] lang="en"
# Now the arithmetic, in FLOPs. A matrix entry is one multiplication and one addition per token; the embedding is looked up and costs none. Scores and weighted values need $2D$ each for every pair of tokens. With a causal mask, a token has $T/2$ partners on average in a text of $T$. Backward costs twice as much as forward, since each product has two gradients. Per trained token:
#
# $$\mathrm{FLOPs} = 3\,\bigl(2\,(N - VD) + 2\,L\,T\,D\bigr) \;\approx\; 6N \tag{7.14}$$

# %%
T, D = 2048, 4096
pairs = sum(2 * 2 * D * (t + 1) for t in range(T)) / T  # scores and values: token t sees t + 1
print(f"attention, per token and layer: {pairs:,.0f} counted, 2TD = {2 * T * D:,}")
entries = sum(int(np.prod(s)) for name, s in nn.param_shapes(ModelConfig(**PRESETS["7B"].model)).items()
              if name != "tok_embeddings")
print(f"(7.14) for 7B: {3 * (2 * entries + 2 * 32 * T * D):.4g} FLOPs a token; 6N = {6 * 6738415616:.4g}")

# %% [markdown] lang="en"
# Here is what the paper prints, beside what the shapes say. Its table 2 has 65.2 where the exact number would round to 65.3: it is cut, not rounded. Energy is 400 W per GPU times 1.1 for the building; CO₂ is 0.385 kg per kWh, as in its table 15.

# %%
# billions, MWh, t CO2
paper = {"7B": (6.7, 36, 14), "13B": (13.0, 59, 23), "33B": (32.5, 233, 90), "65B": (65.2, 449, 173)}
plans = {name: plan(ModelConfig(**PRESETS[name].model), TrainConfig(**PRESETS[name].train), name) for name in paper}
print("         parameters  table 2  GFLOP/token  6N/that")
for name, p in plans.items():
    flops = p["flops_per_token"] / 1e9
    print(f"{name:>3} {p['parameters']:>15,}  {paper[name][0]:>7}  {flops:>11.1f}  "
          f"{6 * p['parameters'] / 1e9 / flops:>7.3f}")
print("\n    tokens  GPU-hours at half of the peak      paper   MWh  paper  t CO2  paper")
for name, p in plans.items():
    energy = p["gpu_hours_paper"] * 0.4 * 1.1 / 1000
    print(f"{name:>3}  {p['train_tokens'] / 1e12:.1f} T  {p['gpu_hours_estimate']:>29,.0f}  {p['gpu_hours_paper']:>9,}"
          f"  {energy:>4.0f}  {paper[name][1]:>5}  {0.385 * energy:>5.0f}  {paper[name][2]:>5}")

# %%
sizes = {name: plans[name]["parameters"] for name in paper}
claim("all four counts are exact",
      list(sizes.values()) == [6_738_415_616, 13_015_864_320, 32_528_943_616, 65_285_660_672])
claim("and agree with table 2, whose last digit is cut off",
      all(abs(sizes[name] / 1e9 - paper[name][0]) < 0.1 for name in paper))
claim("6N is right within 3 %", all(abs(6 * p["parameters"] / p["flops_per_token"] - 1) < 0.03 for p in plans.values()))
hours = [p["gpu_hours_estimate"] / p["gpu_hours_paper"] for p in plans.values()]
claim("half of an A100's peak explains the paper's hours within 15 %", np.allclose(hours, 1, atol=0.15))
record(mfu_low=100 * min(p["mfu_paper"] for p in plans.values()),
       mfu_high=100 * max(p["mfu_paper"] for p in plans.values()))

# %%
names = ("nano", "small", "7B", "13B", "33B", "65B")
parts = {"embedding and head": ("tok_embeddings", "output"), "attention": ("wq", "wk", "wv", "wo"),
         "feed-forward": ("w1", "w2", "w3")}
fig, axis = plt.subplots(figsize=(7.2, 3.0))
for row, name in enumerate(names):
    shapes, begin = nn.param_shapes(ModelConfig(**PRESETS[name].model)), 0.0
    total = sum(int(np.prod(s)) for s in shapes.values())
    for (part, tensors), colour in zip(parts.items(), (lab.COLOURS[4], lab.COLOURS[0], lab.COLOURS[2])):
        share = 100 * sum(int(np.prod(s)) for k, s in shapes.items() if k.rpartition(".")[2] in tensors) / total
        axis.barh(row, share, left=begin, color=colour, label=part if row == 0 else None)
        axis.text(begin + share / 2, row, f"{share:.1f}" if share > 6 else "", ha="center", va="center", color="white",
                  fontsize=9)
        begin += share
axis.set(yticks=range(6), yticklabels=names, ylim=(5.5, -0.5), xlim=(0, 100))
axis.set_xlabel("share of the parameters (%); what is left, the gains, is too thin to see")
axis.grid(axis="y", visible=False)
axis.set_title("Two thirds of a large LLaMA are feed-forward", pad=24)
axis.legend(loc="lower left", bbox_to_anchor=(0, 0.98), ncols=3)
plt.show()

# %% [markdown] lang="en"
# **What does not show at this scale.** Six layers started *without* $1/\sqrt{2L}$ end at {{alike:.2f}}, with it at {{usual:.2f}}: no difference. At $D = 32$, a standard deviation of 0.02 is so small that no branch adds much in either case. In the *parallel* block, the feed-forward reads $x$ in place of $h$. It costs something in two layers, {{parallel_2:.2f}} against {{usual_2:.2f}}, and nothing that we can see in six, {{parallel:.2f}}. We did not compare a *tied* head, which is the embedding used a second time.

# %%
parallel = {"patch": wiring.patch_of("parallel")}
loud = {"minillama.engine.numpy_engine.init_params": "lessons.museum.llama.init_all_alike"}
null = lab.run({"usual": {"n_layers": 6, "lr": 1e-2}, "without 1/√(2L)": {"n_layers": 6, "patch": loud},
                "parallel": {"n_layers": 6, **parallel}, "parallel, 2 layers": parallel}, seeds=seeds, steps=150,
               evaluations=1)
lab.table(null)
record(usual=null["usual"].mean, alike=null["without 1/√(2L)"].mean, parallel=null["parallel"].mean)
record(parallel_2=null["parallel, 2 layers"].mean, usual_2=trained["right"].mean)
for name in ("without 1/√(2L)", "parallel"):
    claim(f"{name}: within 0.1 nats/token of the usual one", abs(null[name].mean - null["usual"].mean) < 0.1,
          fast=False)
claim("in two layers the parallel block is worse at every seed",
      null["parallel, 2 layers"].final.min() > trained["right"].final.max(), fast=False)

# %% [markdown] lang="en"
# ## The anchor in the paper
#
# LLaMA §2.2 gives the block in half a page: pre-normalisation, SwiGLU with $\frac23 4D$, RoPE in place of absolute positions. §2.4: the backward of the layers was written by hand. Table 15 gives the hours: by (7.14), its GPUs did {{mfu_low:.0f}} to {{mfu_high:.0f}} % of the arithmetic that they are built for. The paper does not say how the weights start; $1/\sqrt{2L}$ is GPT-2's rule (Radford et al. 2019, §2.3).

# %% [markdown] lang="en"
# ## Three questions
#
# 1. Where in `block_backward` is a `+`, and which fork of the forward pass does each of them belong to?
# 2. In a table of errors, everything up to `wq` of the last layer is right, and its `attention_norm` is wrong. Which line do you look at?
# 3. You make a model twice as wide and keep its depth. By what factor do its parameters grow? And the arithmetic per token?
#
# <details><summary>Answers</summary>
#
# 1. $dm$ adds the ways through `w1` and `w3` (fork at $m$); $dh$ adds the skip and the feed-forward branch (at $h$); $dn$ adds the ways through `wq`, `wk` and `wv` (at $n$, two plus signs); $dx$ adds the skip and the attention branch (at $x$).
# 2. The line that makes $dn$ from the gradients of $q$, $k$ and $v$: all that is computed before it is right, and `attention_norm` is the first tensor behind it. One of the three ways is missing, or overwritten.
# 3. The matrices of the layers are $D$ by $D$ or $D$ by about $\tfrac83 D$, so they become 4 times as large, the embedding and the output head only 2 times. So a large model has nearly 4 times as many parameters. By (7.14) its arithmetic grows nearly 4 times, too: it is about $6N$, and only attention's own part, $6\,L\,T\,D$, and the head's double.
#
# </details>
#
# **The way on:** [08 · Eleven wrong gradients](08_wrong_gradients.ipynb), where you meet more mistakes that train, as these four do.
