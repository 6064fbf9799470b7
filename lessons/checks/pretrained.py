"""Lesson 14: what the learner writes, and the ways it goes wrong. Equation numbers are the lesson's."""
import numpy as np

from ..check import Exercise, Mistake


def choose_lr(rates, gain, forgetting, limits):
    """For each limit, the learning rate that gains most among those that forget little enough.

    Args:
        rates:      (R,)      ascending
        gain:       (R, S)    what each of S seeds has gained at each rate, nats/token
        forgetting: (R, S)    what each has lost on the old text, nats/token
        limits:     (L,)      of what the worst seed may lose

    Returns:
        chosen: (L,)    0 where no rate keeps the limit: then the model stays as it is
    """
    chosen = np.zeros(len(limits))
    mean = gain.mean(1)
    worst = forgetting.max(1)
    for k, limit in enumerate(limits):
        allowed = worst <= limit
        if allowed.any():
            chosen[k] = rates[np.where(allowed, mean, -np.inf).argmax()]
    return chosen


def masked_targets(prompts, answers, eos_id):
    """A batch of instruction texts, of which the answers alone are learned.

    Args:
        prompts: list of (n,) int arrays    each begins with <s>
        answers: list of (m,) int arrays    as many
        eos_id:  int                        ends every answer

    Returns:
        tokens:  (B, T) int    prompt and answer, then padding: 0; T is the longest prompt and answer together
        targets: (B, T) int    what comes next, where it is of the answer or its end; -1 elsewhere
    """
    T = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers))
    tokens, targets = np.zeros((len(prompts), T), int), np.full((len(prompts), T), -1)
    for b, (prompt, answer) in enumerate(zip(prompts, answers)):
        row = np.concatenate([prompt, answer, [eos_id]])
        tokens[b, :len(row) - 1] = row[:-1]
        targets[b, :len(row) - 1] = row[1:]
        masked = len(prompt) - 1
        targets[b, :masked] = -1
    return tokens, targets


def lora_forward(x, weight, a, b, alpha):
    """A linear layer with a low-rank adapter, and the one matrix that does the same.

    Args:
        x:      (B, T, D)
        weight: (N, D)       frozen
        a:      (r, D)
        b:      (N, r)
        alpha:  float

    Returns:
        out:    (B, T, N)
        merged: (N, D)       x mergedᵀ is out
    """
    scale = alpha / len(a)
    out = x @ weight.T
    h = x @ a.T
    out = out + scale * (h @ b.T)
    merged = weight + scale * (b @ a)
    return out, merged


def lora_backward(dout, x, weight, a, b, alpha):
    """Gradients of x, a and b, given dout (B, T, N); shapes as in lora_forward."""
    scale = alpha / len(a)
    h = x @ a.T
    dh = scale * (dout @ b)
    dx = dout @ weight + dh @ a
    da = np.einsum("btr,btd->rd", dh, x)
    db = scale * np.einsum("btn,btr->nr", dout, h)
    return dx, da, db


def _choose_inputs(rng):
    """Gain rises, then falls; forgetting rises; both with seeds that differ so much that it matters which one is asked."""
    rates = np.sort(rng.uniform(0.1, 9.9, 14)).round(2)
    bend = np.linspace(0, 1.5, 14)[:, None]
    gain = np.sin(bend * 1.6) + 0.3 * rng.uniform(-1, 1, (14, 4))
    forgetting = bend**2 + 0.1 + 0.7 * rng.uniform(0, 1, (14, 4))
    worst = np.sort(forgetting.max(1))
    return rates, gain, forgetting, np.array([0.01, worst[0], *rng.uniform(worst[1], worst[-2], 8), worst[-4], 9.0])


def _batch_inputs(rng):
    lengths = rng.permutation([2, 4, 5, 7]), rng.permutation([1, 3, 4, 6])
    prompts = [np.array([1, *rng.integers(3, 30, n)]) for n in lengths[0]]
    return prompts, [rng.integers(3, 30, n) for n in lengths[1]], 2


def _lora_inputs(rng):
    B, T, D, N, r = 2, 5, 7, 6, 3
    return rng.standard_normal((B, T, D)), rng.standard_normal((N, D)), rng.standard_normal((r, D)), rng.standard_normal((N, r)), 4.8


def _lora_backward_inputs(rng):
    x, *others = _lora_inputs(rng)
    return rng.standard_normal((2, 5, 6)), x, *others


def _lora_terms(x, weight, a, b, alpha):
    return {"out": {"x Wᵀ": (x @ weight.T, 1), "(x Aᵀ) Bᵀ": (x @ a.T @ b.T, alpha / len(a))},
            "merged": {"W": (weight, 1), "B A": (b @ a, alpha / len(a))}}


def _lora_backward_terms(dout, x, weight, a, b, alpha):
    rows, scale = len(x), alpha / len(a)
    da, db = (dout @ b).transpose(0, 2, 1) @ x, dout.transpose(0, 2, 1) @ (x @ a.T)  # of each row of the batch
    return {"dx": {"dout W": (dout @ weight, 1), "(dout B) A": (dout @ b @ a, scale)},
            "da": {f"(dout B)ᵀ x of row {n}": (da[n], scale) for n in range(rows)},
            "db": {f"doutᵀ (x Aᵀ) of row {n}": (db[n], scale) for n in range(rows)}}


BEST = "rates[np.where(allowed, mean, -np.inf).argmax()]"

EXERCISES = {
    "14.choose_lr": Exercise(
        choose_lr, ("chosen",), _choose_inputs,
        (
            Mistake("mean-forgets", "forgetting.max(1)", "forgetting.mean(1)",
                    "the limit is held by the mean of the seeds; the worst seed must hold it (14.5)"),
            Mistake("best-seed-forgets", "forgetting.max(1)", "forgetting.min(1)",
                    "the limit is held by the seed that forgets least; the one that forgets most must hold it (14.5)"),
            Mistake("one-seed", "forgetting.max(1)", "forgetting[:, 0]", "the first seed alone is asked what it forgets; there are several (14.5)"),
            Mistake("best-seed-gains", "gain.mean(1)", "gain.max(1)", "a rate counts by its luckiest seed; it must by the mean of the gains (14.5)"),
            Mistake("worst-seed-gains", "gain.mean(1)", "gain.min(1)", "a rate counts by the gain of its worst seed; it must by the mean of the gains (14.5)"),
            Mistake("highest-allowed", BEST, "rates[allowed].max()",
                    "the highest allowed rate is taken; the gain need not be best there (14.5)"),
            Mistake("forgets-least", BEST, "rates[np.where(allowed, worst, np.inf).argmin()]",
                    "the rate that forgets least is taken; among the allowed ones the gain decides (14.5)"),
            Mistake("gains-least", BEST, "rates[np.where(allowed, mean, np.inf).argmin()]",
                    "the smallest gain is taken: a gain is better the larger it is, an excess the smaller (14.5)"),
            Mistake("place-among-the-allowed", BEST, "rates[mean[allowed].argmax()]",
                    "the place among the allowed rates is taken for the place among all (14.5)"),
            Mistake("gain-per-forgetting", BEST, "rates[np.where(allowed, mean / worst, -np.inf).argmax()]",
                    "the gain is divided by the forgetting; inside the limit the gain alone decides (14.5)"),
            Mistake("no-limit", "worst <= limit", "worst < np.inf", "the limit is not asked at all (14.5)"),
            Mistake("limit-itself-refused", "worst <= limit", "worst < limit", "a rate that forgets exactly the limit is refused; at most means that it is allowed (14.5)"),
            Mistake("always-one", "np.zeros(len(limits))", "np.full(len(limits), rates[0])",
                    "the lowest rate is chosen where none is allowed; then it must be 0 (14.5)"),
        ),
    ),
    "14.masked_targets": Exercise(
        masked_targets, ("tokens", "targets"), _batch_inputs,
        (
            Mistake("not-shifted", "= row[1:]", "= row[:-1]", "the target of a place is the token that stands there; it must be the one after it (14.10)"),
            Mistake("shifted-twice", "targets[b, :len(row) - 1] = row[1:]", "targets[b, :len(row) - 2] = row[2:]",
                    "targets are shifted by two: some loss functions shift by themselves, this one does not (14.10)"),
            Mistake("prompt-learned", "masked = len(prompt) - 1", "masked = 0", "the prompt is learned, too; its targets must be -1 (14.10)"),
            Mistake("first-of-answer-masked", "masked = len(prompt) - 1", "masked = len(prompt)",
                    "the answer's first token is not learned: it is the target of the prompt's *last* place (14.10)"),
            Mistake("last-of-prompt-learned", "masked = len(prompt) - 1", "masked = len(prompt) - 2",
                    "the prompt's last token is learned: it is the target of the place before it, which must be -1 (14.10)"),
            Mistake("answer-masked", "targets[b, :masked] = -1", "targets[b, masked:len(row) - 1] = -1", "the answer is masked and the prompt learned: the wrong way round (14.10)"),
            Mistake("zero-for-masked", "targets[b, :masked] = -1", "targets[b, :masked] = 0",
                    "the prompt's targets are 0, which is a token like any other; -1 is what the loss leaves out (14.10)"),
            Mistake("padding-learned", "np.full((len(prompts), T), -1)", "np.zeros((len(prompts), T), int)",
                    "the padding is learned: its targets are 0, a token like any other, and must be -1 (14.10)"),
            Mistake("end-masked-with-the-padding", "return tokens, targets", "return tokens, np.where(targets == eos_id, -1, targets)",
                    "every target that is </s> is masked, as if it were padding: then the model never learns to stop (14.10)"),
            Mistake("end-missing", "row = np.concatenate([prompt, answer, [eos_id]])", "row = np.concatenate([prompt, answer])",
                    "no </s> is put behind the answer: then the model never learns to stop (14.10)"),
            Mistake("minus-hundred", ("np.full((len(prompts), T), -1)", "targets[b, :masked] = -1"), ("np.full((len(prompts), T), -100)", "targets[b, :masked] = -100"),
                    "what is left out is marked by -100, as in PyTorch; here it is -1 (14.10)"),
            Mistake("padded-with-the-end", "np.zeros((len(prompts), T), int), np", "np.full((len(prompts), T), eos_id), np",
                    "the tokens are padded with </s>: nothing reads them, so it does no harm by itself, but 0 was asked for (14.10)"),
            Mistake("prompt-hidden", "masked = len(prompt) - 1", "masked = len(prompt) - 1; tokens[b, :masked] = 0",
                    "the mask hides the prompt from the model, too: it is for the targets, the model must read all (14.10)"),
        ),
    ),
    "14.lora_forward": Exercise(
        lora_forward, ("out", "merged"), _lora_inputs,
        (
            Mistake("not-by-rank", "scale = alpha / len(a)", "scale = alpha", "alpha is not divided by the rank (14.11)"),
            Mistake("scale-inverted", "scale = alpha / len(a)", "scale = len(a) / alpha", "the rank is divided by alpha; the scale is alpha / r (14.11)"),
            Mistake("root-of-rank", "scale = alpha / len(a)", "scale = alpha / np.sqrt(len(a))",
                    "alpha is divided by √r, as rsLoRA does; here it is r (14.11)"),
            Mistake("wrong-axis", "scale = alpha / len(a)", "scale = alpha / len(b)", "alpha is divided by the number of outputs; the rank is the number of rows of A (14.11)"),
            Mistake("frozen-dropped", "out = out + scale", "out = scale", "x Wᵀ is dropped: the adapter is added to the frozen layer (14.11)"),
            Mistake("relu-between", "h = x @ a.T", "h = np.maximum(x @ a.T, 0)",
                    "there is a ReLU between A and B: then no single matrix could do the same (14.11)"),
            Mistake("merged-without-scale", "merged = weight + scale * (b @ a)", "merged = weight + b @ a", "B A is merged without its scale (14.14)"),
            Mistake("merged-twice", "merged = weight + scale * (b @ a)", "merged = weight + 2 * scale * (b @ a)", "B A is merged twice (14.14)"),
        ),
        _lora_terms,
    ),
    "14.lora_backward": Exercise(
        lora_backward, ("dx", "da", "db"), _lora_backward_inputs,
        (
            Mistake("not-by-rank", "scale = alpha / len(a)", "scale = alpha", "alpha is not divided by the rank (14.11)"),
            Mistake("scale-missing", "scale = alpha / len(a)", "scale = 1.0", "the scale is missing; it stands in every path through the adapter (14.12)"),
            Mistake("dx-adapter-dropped", "dout @ weight + dh @ a", "dout @ weight",
                    "the path through the adapter is dropped: x goes into both (14.12)"),
            Mistake("dx-frozen-dropped", "dout @ weight + dh @ a", "dh @ a",
                    "the path through the frozen layer is dropped: W gets no gradient, but x gets one through it (14.12)"),
            Mistake("da-scale-twice", '"btr,btd->rd", dh, x)', '"btr,btd->rd", scale * dh, x)', "the scale is applied twice: it is in dh (14.13)"),
            Mistake("db-scale-missing", "scale * np.einsum", "1.0 * np.einsum", "the scale is missing (14.13)"),
            Mistake("mean-over-tokens", ('"btr,btd->rd", dh, x)', '"btn,btr->nr", dout, h)'), ('"btr,btd->rd", dh, x) / dh[..., 0].size', '"btn,btr->nr", dout, h) / h[..., 0].size'),
                    "the tokens are averaged; their gradients must be added (14.13)"),
            Mistake("last-row-only", ('"btr,btd->rd", dh, x)', '"btn,btr->nr", dout, h)'), ('"btr,btd->rd", dh[-1:], x[-1:])', '"btn,btr->nr", dout[-1:], h[-1:])'),
                    "the last row of the batch alone counts: all rows must be added (14.13)"),
            Mistake("dh-of-ones", "dh = scale * (dout @ b)", "dh = scale * (np.ones_like(dout) @ b)", "dout does not go through B: dh needs it (14.12)"),
        ),
        _lora_backward_terms,
    ),
}
