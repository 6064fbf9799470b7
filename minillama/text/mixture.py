"""Tokens on disk, and batches drawn from several sources by proportion.

A source becomes a shard: two files of uint16 token ids, `<s> document </s> <s> document </s> ...`, made once and then read through
a memory map. A batch is a pure function of (seed, step): every row picks a source with probability equal to its share, and a
random place in it; so shares are by token and not by document. Nothing is remembered between steps, so a resumed run needs no state.

LLaMA mixes seven sources in this way [LLaMA §2.1, table 1], and reports how often each was read: its epochs.
Lesson: lessons/12_data.ipynb.
"""
import hashlib
import math
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..files import atomic, read_json, sha256, write_json
from ..nn import IGNORE

BATCH_CHARACTERS = 1 << 20  # text tokenised at a time


class Stream(NamedTuple):
    """Training or validation tokens of a source.

    tokens:  (n,) uint16 memory map    `<s> document </s> <s> document </s> ...`
    scored:  int            tokens a model is asked to predict: all but the <s> that starts each document
    bytes:   int            UTF-8 bytes of the text
    documents: int
    floor:   float | None   exact information of the documents, nats per scored token, if it is known: their entropy floor
    """

    tokens: np.ndarray
    scored: int
    bytes: int
    documents: int
    floor: float | None


class Shard(NamedTuple):
    """One source, tokenised: its share of the mix (shares sum to 1), and its streams. `train` is None if all is held out."""

    name: str
    share: float
    train: Stream | None
    val: Stream


class _Writer:
    """Tokenises documents into folder/train.bin and folder/val.bin. Short ones wait, to be tokenised many at a time; a long one is
    tokenised slice by slice, in bounded memory.

    counts: dict side -> {"tokens", "bytes", "documents", "bits"}
    """

    def __init__(self, folder, tokenizer, progress):
        self.tokenizer, self.progress = tokenizer, progress
        self.counts = {side: {"tokens": 0, "bytes": 0, "documents": 0, "bits": 0.0} for side in ("train", "val")}
        self._waiting, self._waiting_bytes = {"train": [], "val": []}, 0
        self._files = {side: open(folder / f"{side}.bin", "wb") for side in self.counts}  # noqa: SIM115 — closed by __exit__

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for file in self._files.values():
            file.close()

    def add(self, side, chunks, bits):
        """One document of a source."""
        count = self.counts[side]
        count["documents"] += 1
        count["bits"] = None if bits is None else count["bits"] + bits
        if isinstance(chunks, tuple) and len(chunks[0]) <= BATCH_CHARACTERS:
            before = count["bytes"]
            self._waiting[side].extend(self._slices(chunks, count))
            self._waiting_bytes += count["bytes"] - before
            if self._waiting_bytes > BATCH_CHARACTERS:
                self.flush()
            return
        self._write(side, [self.tokenizer.bos_id])
        for ids in self.tokenizer.encode_chunks(self._slices(chunks, count)):
            self._write(side, ids)
        self._write(side, [self.tokenizer.eos_id])

    def flush(self):
        """Tokenise the documents that wait."""
        for side, texts in self._waiting.items():
            for ids in self.tokenizer.encode_batch(texts, num_threads=os.cpu_count() or 1):
                self._write(side, [self.tokenizer.bos_id, *ids, self.tokenizer.eos_id])
            texts.clear()
        self._waiting_bytes = 0

    def _slices(self, chunks, count):
        """The text of a document in slices of bounded length, each counted as it is read."""
        for chunk in chunks:
            for start in range(0, len(chunk), BATCH_CHARACTERS):
                text = chunk[start:start + BATCH_CHARACTERS]
                size = len(text.encode("utf-8"))
                count["bytes"] += size
                self.progress(size)
                yield text

    def _write(self, side, ids):
        self._files[side].write(np.array(ids, np.uint16).tobytes())
        self.counts[side]["tokens"] += len(ids)


def _read_counts(folder):
    """The counts of a shard whose files are as they were written, else None."""
    try:
        counts = read_json(folder / "meta.json")
        if all(sha256(folder / f"{side}.bin") == counts[side]["sha256"] for side in ("train", "val")):
            return counts
    except (InputError, OSError, KeyError, TypeError):
        pass
    return None


def _open_stream(folder, side, count):
    if not count["tokens"]:
        return None
    tokens = np.memmap(folder / f"{side}.bin", np.uint16, "r")
    scored = count["tokens"] - count["documents"]
    floor = None if count["bits"] is None else count["bits"] * math.log(2) / scored
    return Stream(tokens, scored, count["bytes"], count["documents"], floor)


def load_shard(source, share, tokenizer, cache, val_fraction=None, progress=lambda size: None):
    """Tokenise a source, or find it already tokenised: the key is the content of the text and of the tokenizer.

    Args:
        source:       of sources.py
        share:        float         of the mix
        tokenizer:    Tokenizer
        cache:        Path          folder of all tokenised sources
        val_fraction: float | None  share held out; None: everything (a text to evaluate on)
        progress:     (int) -> None called with the UTF-8 bytes done

    Returns:
        Shard
    """
    key = hashlib.sha256(f"1 {source.fingerprint()} {tokenizer.fingerprint} {val_fraction}".encode()).hexdigest()[:16]
    folder = Path(cache) / f"{source.name.replace('/', '_')[-40:]}-{key}"
    if _read_counts(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)                # damaged, if it is there: a cache can be made again
        try:
            with atomic(folder, parents=True) as making:
                making.mkdir()
                with _Writer(making, tokenizer, progress) as writer:
                    for side, chunks, bits in source.held_out() if val_fraction is None else source.documents(val_fraction):
                        writer.add(side, chunks, bits)
                    writer.flush()
                for side, count in writer.counts.items():
                    count["sha256"] = sha256(making / f"{side}.bin")
                write_json(making / "meta.json", writer.counts)
        except FileExistsError:
            pass                                                 # another process was faster: its work is the same
    counts = _read_counts(folder)
    return Shard(source.name, share, *(_open_stream(folder, side, counts[side]) for side in ("train", "val")))


class Mixture:
    """Batches from several shards.

    Raises:
        InputError: a source whose training text is shorter than one row
    """

    def __init__(self, shards, seq_len, seed, bos_id):
        self.shards, self.seq_len, self.seed, self.bos_id = shards, seq_len, seed, bos_id
        self._cumulative = np.cumsum([shard.share for shard in shards])
        for shard in shards:
            tokens = len(shard.train.tokens) if shard.train else 0
            if tokens < seq_len + 1:
                raise InputError(f"{shard.name} must have at least {seq_len + 1} training tokens (seq_len {seq_len} + 1), got {tokens}")

    def batch(self, step, rows):
        """The rows of one step: a pure function of (seed, step, rows).

        Sources are drawn by systematic sampling: one random offset, then equal steps through the cumulative shares. Each
        row has probability `share`, and every batch is within one row of the exact proportion.

        Returns:
            tokens, targets: (rows, seq_len) int64. The start of a document is not a prediction: its target is IGNORE.
        """
        rng = np.random.default_rng([self.seed, step])
        points = (rng.random() + np.arange(rows)) / rows * self._cumulative[-1]
        sources = np.minimum(np.searchsorted(self._cumulative, points, side="right"), len(self.shards) - 1)
        streams = [self.shards[source].train.tokens for source in sources]
        starts = [int(rng.integers(len(stream) - self.seq_len)) for stream in streams]
        window = np.stack([stream[start:start + self.seq_len + 1] for stream, start in zip(streams, starts)]).astype(np.int64)
        return window[:, :-1], mask_starts(window[:, 1:], self.bos_id)

    def epochs(self, tokens):
        """How often each source has been read after that many training tokens, as in [LLaMA table 1]: dict."""
        return {shard.name: tokens * shard.share / len(shard.train.tokens) for shard in self.shards}


def mask_starts(targets, bos_id):
    """Targets with IGNORE in place of every <s>: the model is not asked to predict where a document starts."""
    return np.where(targets == bos_id, IGNORE, targets)


def validation_rows(stream, seq_len, bos_id):
    """Cut a stream into rows that score every token once: as many complete documents as fit a row, and longer ones cut.

    Args:
        stream: (n,) uint16    `<s> document </s> ...`

    Yields:
        start, end: the row is stream[start:end], at most seq_len + 1 tokens; rows of one document overlap by one token
    """
    starts = np.flatnonzero(stream == bos_id)
    ends = np.append(starts[1:], len(stream))
    i = 0
    while i < len(starts):
        fits = int(np.searchsorted(ends, starts[i] + seq_len + 1, side="right"))  # documents i .. fits - 1 end inside this row
        if fits > i:
            yield int(starts[i]), int(ends[fits - 1])
            i = fits
            continue
        for start in range(int(starts[i]), int(ends[i]) - 1, seq_len):
            yield start, min(start + seq_len + 1, int(ends[i]))
        i += 1
