"""Evaluation: mean loss on held-out text, beside the entropy floor if it is known.

    loss            nats per token the model is asked to predict
    bits_per_byte   loss / ln 2 * tokens / bytes: comparable between tokenizers
    perplexity      exp(loss): the number of equally likely tokens it hesitates between
    floor           the exact information of the text, nats/token: no model does better on average

Lesson: lessons/00_baselines.ipynb.
"""
import itertools
import math
from typing import NamedTuple

import numpy as np

from .nn import IGNORE
from .text.mixture import mask_starts, validation_rows


class Score(NamedTuple):
    """One source's result; epochs and floor are None where unknown."""

    loss: float
    bits_per_byte: float
    floor: float | None
    share: float
    epochs: float | None


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
        shards:   list of Shard
        limit:    int                   score about this many tokens of each source, spread over all it has
        epochs:   dict name -> float    how often each source was trained on, if it was
        progress: (int) -> None         called with the tokens done; what it raises ends the evaluation

    Returns:
        dict name -> Score
    """
    scores = {}
    for shard in shards:
        val = shard.val
        every = max(1, math.ceil(val.scored / limit))
        loss = mean_loss(engine, val.tokens, seq_len, bos_id, batch_size, every, progress)
        bits_per_byte = loss / math.log(2) * val.scored / val.bytes
        scores[shard.name] = Score(loss, bits_per_byte, val.floor, shard.share, (epochs or {}).get(shard.name))
    return scores


def mix_floor(shards):
    """Entropy floor of the mix, nats/token, weighted by share; None if one source's is unknown."""
    floors = [shard.val.floor for shard in shards]
    return None if None in floors else sum(shard.share * floor for shard, floor in zip(shards, floors))


def summary(shards, scores):
    """The mix, weighted by share, with every source: the object `eval --json` prints.

    Returns:
        {"loss", "bits_per_byte", "perplexity", "floor", "sources": {NAME: {"loss", "bits_per_byte", "floor", "share", "epochs"}}}
    """
    loss = sum(score.share * score.loss for score in scores.values())
    bytes_per_token = sum(shard.share * shard.val.bytes / shard.val.scored for shard in shards)
    return {
        "loss": loss,
        "bits_per_byte": loss / math.log(2) / bytes_per_token,
        "perplexity": math.exp(min(loss, 700)),
        "floor": mix_floor(shards),
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
    return "\n".join(rows)
