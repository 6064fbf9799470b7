"""Evaluation: mean loss on held-out text, beside the entropy floor if it is known.

    loss            nats per token the model is asked to predict
    bits_per_byte   loss / ln 2 * tokens / bytes: comparable between tokenizers
    perplexity      exp(loss): the number of equally likely tokens it hesitates between
    floor           the exact information of the text, nats/token: no model does better on average
    which_source    Σ rows −ln p / tokens, nats/token: what finding out which source it reads costs, beyond the floor, a model that
                    knows everything about the rows that are trained on

p is the probability that a row which begins with a document is of this source: share · d / Σ share · d. A row of training comes from
a source with probability `share` and starts anywhere in it (text/mixture.py); d, the source's documents per token, is the
probability that it starts with <s>. No text belongs to two sources, so by the chain rule such a row costs its documents' information
and −ln p, exactly. That is paid once a row and not once a document: the next one in a row, here as in training, is of the same
source. Not counted are rows that start at a cut inside a long document: they lack more than that.

Lesson: lessons/00_baselines.ipynb.
"""
import itertools
import math
from typing import NamedTuple

import numpy as np

from .nn import IGNORE
from .text.mixture import mask_starts, validation_rows


class Score(NamedTuple):
    """One source's result; epochs, floor and which_source are None where unknown."""

    loss: float
    bits_per_byte: float
    floor: float | None
    share: float
    epochs: float | None
    which_source: float | None = None


def _batches(stream, seq_len, bos_id, batch_size, every):
    """Every n-th validation row, padded to the longest of their batch: (tokens, targets), both (B, T) int64."""
    rows = itertools.islice(validation_rows(stream, seq_len, bos_id), 0, None, every)
    while batch := list(itertools.islice(rows, batch_size)):
        longest = max(end - start for start, end in batch) - 1
        tokens = np.zeros((len(batch), longest), np.int64)
        targets = np.full((len(batch), longest), IGNORE, np.int64)
        for i, (start, end) in enumerate(batch):
            tokens[i, :end - start - 1] = stream[start:end - 1]
            targets[i, :end - start - 1] = mask_starts(stream[start + 1:end].astype(np.int64), bos_id)
        yield tokens, targets


def mean_loss(engine, stream, seq_len, bos_id, batch_size=16, every=1, progress=lambda tokens: None):
    """Mean loss over a token stream, every token scored once; a row starts with a document, or at a cut inside a long one.

    Args:
        engine:   Engine
        stream:   (n,) uint16     `<s> document </s> ...`
        every:    int             score every n-th row only: a sample spread over all of the stream
        progress: (int) -> None   called with the tokens done

    Returns:
        loss: float, nats/token
    """
    nats, scored = 0.0, 0
    for tokens, targets in _batches(stream, seq_len, bos_id, batch_size, every):
        batch_nats, count = engine.loss(tokens, targets)
        nats += batch_nats
        scored += count
        progress(count)
    return nats / max(scored, 1)


def evaluate(engine, shards, seq_len, bos_id, batch_size=16, limit=math.inf, epochs=None, progress=lambda tokens: None):
    """Score the held-out text of every source.

    Args:
        shards:   list of Shard         all that the model was trained on, for which_source
        limit:    int                   score about this many tokens of each source, spread over all it has
        epochs:   dict name -> float    how often each source was trained on, if it was
        progress: (int) -> None         called with the tokens done; what it raises ends the evaluation

    Returns:
        dict name -> Score
    """
    scores, costs = {}, _which_source(shards, seq_len, bos_id)
    for shard in shards:
        val = shard.val
        every = max(1, math.ceil(val.scored / limit))
        loss = mean_loss(engine, val.tokens, seq_len, bos_id, batch_size, every, progress)
        bits_per_byte = loss / math.log(2) * val.scored / val.bytes
        scores[shard.name] = Score(loss, bits_per_byte, val.floor, shard.share, (epochs or {}).get(shard.name), costs.get(shard.name))
    return scores


def _which_source(shards, seq_len, bos_id):
    """{name: which_source}, empty where floors or training streams are not known."""
    if any(shard.train is None or shard.val.floor is None for shard in shards):
        return {}
    starts = [shard.share * shard.train.documents / len(shard.train.tokens) for shard in shards]
    costs = {}
    for shard, start in zip(shards, starts):
        tokens = shard.val.tokens
        rows = sum(1 for first, _ in validation_rows(tokens, seq_len, bos_id) if tokens[first] == bos_id)
        costs[shard.name] = rows * math.log(sum(starts) / start) / shard.val.scored
    return costs


def mix_floor(shards):
    """Entropy floor of the mix, nats/token, weighted by share; None if one source's is unknown."""
    floors = [shard.val.floor for shard in shards]
    return None if None in floors else sum(shard.share * floor for shard, floor in zip(shards, floors))


def summary(shards, scores):
    """The mix, weighted by share, with every source: the object `eval --json` prints.

    Returns:
        {"loss", "bits_per_byte", "perplexity", "floor", "which_source",
         "sources": {NAME: {"loss", "bits_per_byte", "floor", "share", "epochs", "which_source"}}}
    """
    loss = sum(score.share * score.loss for score in scores.values())
    costs = [score.which_source for score in scores.values()]
    bytes_per_token = sum(shard.share * shard.val.bytes / shard.val.scored for shard in shards)
    return {
        "loss": loss,
        "bits_per_byte": loss / math.log(2) / bytes_per_token,
        "perplexity": math.exp(min(loss, 700)),
        "floor": mix_floor(shards),
        "which_source": None if None in costs else sum(score.share * score.which_source for score in scores.values()),
        "sources": {name: score._asdict() for name, score in scores.items()},
    }


def format_scores(result):
    """`summary` as text, a line per source and one for the mix."""

    def line(name, score, share, epochs):
        floor = score["floor"]
        known = "       -         -" if floor is None else f"{floor:8.4f} {100 * (score['loss'] / floor - 1):+8.1f}%"
        perplexity = math.exp(min(score["loss"], 700))
        return f"{name:<16} {share:>6} {score['loss']:8.4f} {known} {score['bits_per_byte']:10.4f} {perplexity:11.2f} {epochs:>7}"

    rows = [f"{'source':<16} {'share':>6} {'loss':>8} {'floor':>8} {'above it':>9} {'bits/byte':>10} {'perplexity':>11} {'epochs':>7}"]
    for name, score in result["sources"].items():
        epochs = "-" if score["epochs"] is None else f"{score['epochs']:.2f}"
        rows.append(line(name, score, f"{100 * score['share']:.0f}%", epochs))
    if len(rows) > 2:
        rows.append(line("all", result, "100%", ""))
    if result["which_source"]:
        rows.append(f"of the {result['loss'] - result['floor']:.4f} above the floor, {result['which_source']:.4f} are the price of finding "
                    "out which source a row is from")
    return "\n".join(rows)
