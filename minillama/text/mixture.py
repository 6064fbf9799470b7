"""Tokens on disk, and batches drawn from several sources by proportion.

A source becomes two files of uint16 token ids, `<s> document </s> <s> document </s> ...`, made once and then read through a
memory map. A batch is a pure function of (seed, step): every row picks a source with probability equal to its share, so shares
are by token and not by document, and a random place in it. Nothing is remembered between steps, so a resumed run needs no state.

LLaMA mixes seven sources so [LLaMA §2.1, table 1], and reports how often each was gone through: its epochs.
Lesson: lessons/12_data.ipynb.
"""
import hashlib
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..nn import IGNORE

BATCH_CHARACTERS = 1 << 20  # text tokenised at a time
LEFTOVER_AGE = 24 * 3600  # seconds: no tokenisation takes a day


class Part(NamedTuple):
    """Training or validation tokens of a source.

    stream:  (n,) uint16 memory map
    scored:  int            tokens a model is asked to predict: all but the <s> that starts each document
    bytes:   int            UTF-8 bytes of the text
    documents: int
    floor:   float | None   exact information of the documents, nats per scored token, where it is known
    """

    stream: np.ndarray
    scored: int
    bytes: int
    documents: int
    floor: float | None


class Shard(NamedTuple):
    """One source, tokenised: its share of the mix (shares sum to 1), and its parts. `train` is None where all is held out."""

    name: str
    share: float
    train: Part | None
    val: Part


def _write_part_files(folder, pieces, tokenizer, progress):
    """Tokenise pieces into folder/train.bin and folder/val.bin; return the counts of both."""
    counts = {part: {"tokens": 0, "bytes": 0, "documents": 0, "bits": 0.0} for part in ("train", "val")}
    waiting, characters = {"train": [], "val": []}, 0

    def flush(files):
        nonlocal characters
        for part, texts in waiting.items():
            for ids in tokenizer.encode_batch(texts, num_threads=os.cpu_count() or 1):
                write(files, part, [tokenizer.bos_id, *ids, tokenizer.eos_id])
            texts.clear()
        characters = 0

    def write(files, part, ids):
        np.array(ids, np.uint16).tofile(files[part])
        counts[part]["tokens"] += len(ids)

    with open(folder / "train.bin", "wb") as train, open(folder / "val.bin", "wb") as val:
        files = {"train": train, "val": val}
        for part, chunks, bits in pieces:
            count = counts[part]
            count["documents"] += 1
            count["bits"] = None if bits is None else count["bits"] + bits
            if isinstance(chunks, tuple):                        # a short document: tokenised many at a time
                waiting[part].extend(chunks)
                size = sum(len(chunk.encode("utf-8")) for chunk in chunks)
                count["bytes"] += size
                characters += size
                progress(size)
                if characters > BATCH_CHARACTERS:
                    flush(files)
                continue
            write(files, part, [tokenizer.bos_id])               # a long one: in pieces, in flat memory
            for ids in tokenizer.encode_chunks(_counted(chunks, count, progress)):
                write(files, part, ids)
            write(files, part, [tokenizer.eos_id])
        flush(files)
    return counts


def _counted(chunks, count, progress):
    for chunk in chunks:
        size = len(chunk.encode("utf-8"))
        count["bytes"] += size
        progress(size)
        yield chunk


def _open_part(folder, part, count):
    if not count["tokens"]:
        return None
    stream = np.memmap(folder / f"{part}.bin", np.uint16, "r")
    scored = count["tokens"] - count["documents"]
    floor = None if count["bits"] is None else count["bits"] * math.log(2) / scored
    return Part(stream, scored, count["bytes"], count["documents"], floor)


def _remove_leftovers(folder):
    """Delete what a killed process left of this source. A young folder may still be another one's work."""
    for path in folder.parent.glob(f"{folder.name}.*.tmp"):
        if time.time() - path.stat().st_mtime > LEFTOVER_AGE:
            shutil.rmtree(path, ignore_errors=True)


def load_shard(source, share, tokenizer, cache, val_fraction=None, progress=lambda size: None):
    """Tokenise a source, or find it already tokenised: the key is the content of the text and of the tokenizer.

    Args:
        source:       of sources.py
        share:        float         of the mix
        tokenizer:    Tokenizer
        cache:        Path          folder of all tokenised sources
        val_fraction: float | None  held out; None: everything is (a text to evaluate on)
        progress:     (int) -> None called with the UTF-8 bytes done

    Returns:
        Shard
    """
    key = hashlib.sha256(f"1 {source.fingerprint()} {tokenizer.fingerprint} {val_fraction}".encode()).hexdigest()[:16]
    folder = Path(cache) / f"{source.name.replace('/', '_')[-40:]}-{key}"
    if not folder.exists():
        _remove_leftovers(folder)
        making = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
        making.mkdir(parents=True)
        try:
            pieces = source.whole() if val_fraction is None else source.pieces(val_fraction)
            counts = _write_part_files(making, pieces, tokenizer, progress)
            (making / "meta.json").write_text(json.dumps(counts, indent=1))
            if not folder.exists():                              # another process may have been faster: its work is the same
                os.replace(making, folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    counts = json.loads((folder / "meta.json").read_text())
    return Shard(source.name, share, _open_part(folder, "train", counts["train"]), _open_part(folder, "val", counts["val"]))


class Mixture:
    """Batches from several shards.

    Raises:
        InputError: a source whose training part is shorter than one row
    """

    def __init__(self, shards, seq_len, seed, bos_id):
        self.shards, self.seq_len, self.seed, self.bos_id = shards, seq_len, seed, bos_id
        self._cumulative = np.cumsum([shard.share for shard in shards])
        for shard in shards:
            tokens = len(shard.train.stream) if shard.train else 0
            if tokens < seq_len + 1:
                raise InputError(f"{shard.name} is too short: {tokens} training tokens, and a row of seq_len {seq_len} needs {seq_len + 1}")

    def batch(self, step, rows):
        """The rows of one step: a pure function of (seed, step, rows).

        Sources are drawn by systematic sampling: one random offset, then equal steps through the cumulated shares. Each
        row has probability `share`, and every batch is within one row of the exact proportion.

        Returns:
            tokens, targets: (rows, seq_len) int64. The start of a document is not a prediction: its target is IGNORE.
        """
        rng = np.random.default_rng([self.seed, step])
        points = (rng.random() + np.arange(rows)) / rows * self._cumulative[-1]
        sources = np.minimum(np.searchsorted(self._cumulative, points, side="right"), len(self.shards) - 1)
        streams = [self.shards[source].train.stream for source in sources]
        starts = [int(rng.integers(len(stream) - self.seq_len)) for stream in streams]
        window = np.stack([stream[start:start + self.seq_len + 1] for stream, start in zip(streams, starts)]).astype(np.int64)
        return window[:, :-1], mask_starts(window[:, 1:], self.bos_id)

    def epochs(self, tokens):
        """How often each source has been gone through after that many training tokens, as in [LLaMA table 1]: dict."""
        return {shard.name: tokens * shard.share / len(shard.train.stream) for shard in self.shards}


def mask_starts(targets, bos_id):
    """Targets with IGNORE in place of every <s>: where a document starts is not for the model to predict."""
    return np.where(targets == bos_id, IGNORE, targets)


def validation_rows(stream, seq_len, bos_id):
    """Cut a stream into rows that score every token once: as many whole documents as fit a row, and longer ones in pieces.

    Yields:
        start, end: the row is stream[start:end], at most seq_len + 1 tokens; pieces of one document overlap by one token
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
