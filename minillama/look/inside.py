"""What a model does with a text, as arrays: pure functions of (tokens, params, config), usable from a notebook by themselves.

    run = forward(tokens, params, config)        one pass; all of the following reads what it kept
    losses(run.logits, tokens)                   what each token cost
    attention(run), lens(run, ...), contributions(run, ...)
    ablation(tokens, ...), influence(tokens, ...)                more passes, forward and backward

Everything that there is to see, `model_forward` has kept in its cache for the backward pass. Nothing of the model is computed a second
way here: it is read from the caches, or an op of `minillama.nn` is applied to what was read. The five functions under "what a cache
holds" are the only ones that know where in a cache something lies.

`tokens` is one text, (T,) int, and begins with <s>. The model guesses token t at position t - 1.

Logit lens: nostalgebraist 2020, "interpreting GPT: the logit lens". Contributions: Elhage et al. 2021, "A Mathematical Framework for
Transformer Circuits", "direct logit attribution". Gradient times input, and how it saturates: Shrikumar et al. 2016 (arXiv:1605.01713).
Ablation of heads: Michel et al. 2019 (arXiv:1905.10650). Lesson: lessons/13_train.ipynb.
"""
import dataclasses
from typing import NamedTuple

import numpy as np

from ..nn import linear_forward, model_backward, model_forward, rmsnorm_forward

ROWS = 8  # targets that `influence` computes in one batch: of 4 to 32, the fastest on a nano


class Forward(NamedTuple):
    """One text through the model.

    logits: (T, V)    of the next token at every position
    cache:            what model_forward kept
    """

    logits: np.ndarray
    cache: tuple


def forward(tokens, params, config):
    """Run the model on one text: Forward. Raises InputError for an id out of range, or more tokens than the context."""
    logits, cache = model_forward(np.asarray(tokens)[None], params, config)
    return Forward(logits[0], cache)


# --------------------------------------------------------------------------------------------------------- what a cache holds

def _blocks(cache):
    return cache[1]


def _into_attention(block):
    return block[0][0][0]                                        # (T, D): what attention_norm normalised, the stream before the layer


def _into_feed_forward(block):
    return block[8][0][0]                                        # (T, D): what ffn_norm normalised, the stream after attention


def _into_head(cache):
    return cache[2][0][0]                                        # (T, D): what the final norm normalised, the stream after all layers


def _attention_blocks(block):
    return [probs[0] for probs in block[6][3]]                   # (H, rows, keys) of each block of queries


# --------------------------------------------------------------------------------------------------------- read from one pass

def log_probs(logits):
    """ln softmax over the last axis, in float64: (..., V), nats, at most 0."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def losses(logits, tokens):
    """What each token but the first cost: (T - 1,) float64, nats."""
    return -np.take_along_axis(log_probs(logits[:-1]), np.asarray(tokens)[1:, None], -1)[:, 0]


def entropy(logits):
    """How undecided the model is about the next token: (T,) float64, nats; the loss it expects itself to have."""
    ln_p = log_probs(logits)
    return -(np.exp(ln_p) * ln_p).sum(-1)


def attention(run):
    """Where every head looked: (L, H, T, T) float, [layer, head, query, key]; rows sum to 1, and are 0 after the query."""
    T = len(run.logits)
    maps = []
    for block in _blocks(run.cache):
        rows = [np.pad(probs, ((0, 0), (0, 0), (0, T - probs.shape[2]))) for probs in _attention_blocks(block)]
        maps.append(np.concatenate(rows, axis=1))                # (H, T, T)
    return np.stack(maps)


def attention_row(run, position):
    """Where every head looked from one position: (L, H, T) float."""
    rows = []
    for block in _blocks(run.cache):
        start = 0
        for probs in _attention_blocks(block):
            if position < start + probs.shape[1]:
                row = probs[:, position - start]                 # (H, keys)
                rows.append(np.pad(row, ((0, 0), (0, len(run.logits) - row.shape[1]))))
                break
            start += probs.shape[1]
    return np.stack(rows)


def stream(run):
    """The residual stream: (2L + 1, T, D) float. It begins as the embedding; attention and feed-forward of each layer add to it in turn."""
    points = [point for block in _blocks(run.cache) for point in (_into_attention(block), _into_feed_forward(block))]
    return np.stack([*points, _into_head(run.cache)])


def lens(run, params, config):
    """What the model would say if it stopped after each layer, the logit lens: final norm and output head on the stream there.

    Returns:
        logits: (T, V), L + 1 times, one by one: of the embedding alone, then after each layer; the last are the model's own
    """
    for x in stream(run)[::2]:
        yield linear_forward(rmsnorm_forward(x, params["norm"], config.norm_eps)[0], params["output"])[0]


def contributions(run, targets, params, config):
    """How much each part of the model added to one logit at every position.

    The stream is a sum, and with the final norm's scale 1 / rms held fixed the logit is linear in it: so a logit is the sum of what
    the embedding, and every layer's attention and feed-forward, wrote into the stream in that logit's direction.

    Args:
        targets: (n,) int    ids, of the first n positions

    Returns:
        parts: (n, 2L + 1) float64    the logits run.logits[i, targets[i]] in parts: embedding, attention 0, feed-forward 0, attention 1 ...
    """
    points = stream(run)[:, :len(targets)]                       # (2L + 1, n, D)
    _, (_, gain, rstd) = rmsnorm_forward(points[-1], params["norm"], config.norm_eps)
    direction = params["output"][targets].astype(np.float64) * gain * rstd  # (n, D)
    written = np.diff(points.astype(np.float64), axis=0, prepend=0)  # (2L + 1, n, D)
    return np.einsum("knd,nd->nk", written, direction)


# ------------------------------------------------------------------------------------------------------------- more passes

def without_heads(params, config, off):
    """The parameters with some heads switched off: their columns of wo are 0, so that nothing they found reaches the stream.

    Args:
        off: iterable of (layer, head)
    """
    changed = dict(params)
    for layer, head in off:
        name = f"layers.{layer}.wo"
        changed[name] = changed[name].copy()
        changed[name][:, head * config.head_dim:(head + 1) * config.head_dim] = 0
    return changed


def ablation(tokens, params, config):
    """What each head is worth to each token: (L * H, T - 1) float64, nats; its loss with that head off, minus its loss. Above 0: it helped.

    One forward pass a head.
    """
    before = losses(forward(tokens, params, config).logits, tokens)
    heads = [(layer, head) for layer in range(config.n_layers) for head in range(config.n_heads)]
    return np.stack([losses(forward(tokens, without_heads(params, config, [off]), config).logits, tokens) - before for off in heads])


class Influence(NamedTuple):
    """What decided the losses of n tokens, by the gradient at the embedding of every token before them; both (n, T) float64, nats.

    signed: -dloss/dx . x, gradient times input: to first order, how much the loss would rise if the embedding x were 0. Above 0: the
            token helped; below: it misled. Small even where a token matters much: RMSNorm makes a model blind to the length of what
            it reads, and a sure model's loss hardly moves at first
    sensitivity: |dloss/dx| |x|, how fast the loss moves as x is turned in the direction to which it is most sensitive. No sign, but it
            finds the tokens that are read
    """

    signed: np.ndarray
    sensitivity: np.ndarray


def influence(tokens, positions, params, config):
    """What decided the loss of a token: Influence, by model_backward; 0 from the token itself on, which the model has not seen.

    model_backward adds up the gradients of equal ids. So here every place of the batch gets an id, and an embedding row, of its own:
    then the rows of `tok_embeddings`' gradient are those of the places.

    Args:
        positions: (n,) int    the tokens whose losses are asked about, from 1 to T - 1
    """
    tokens, found = np.asarray(tokens), np.zeros((2, len(positions), len(tokens)))
    for first in range(0, len(positions), ROWS):
        asked = np.asarray(positions[first:first + ROWS])
        B, T = len(asked), int(asked.max())                      # what comes later changes nothing
        x = np.tile(params["tok_embeddings"][tokens[:T]], (B, 1))  # (B * T, D)
        own = dataclasses.replace(config, vocab_size=max(B * T, config.vocab_size))
        logits, cache = model_forward(np.arange(B * T).reshape(B, T), params | {"tok_embeddings": x}, own)
        dlogits, rows = np.zeros_like(logits), np.arange(B)      # (B, T, V)
        dlogits[rows, asked - 1] = np.exp(log_probs(logits[rows, asked - 1]))  # each row's own token, and no other: predicted - observed
        dlogits[rows, asked - 1, tokens[asked]] -= 1
        dx = model_backward(dlogits, cache)["tok_embeddings"]    # (B * T, D)
        signed = -np.einsum("nd,nd->n", dx, x, dtype=np.float64)
        sensitivity = np.linalg.norm(dx, axis=1) * np.linalg.norm(x, axis=1)
        found[:, first:first + B, :T] = np.stack([signed, sensitivity]).reshape(2, B, T)
    return Influence(*found)
