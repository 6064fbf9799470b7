"""Shards and the mixture: what is held out stays out, shares are by token, a batch is a function of (seed, step)."""
import json
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from helpers import dead_process

from minillama.errors import InputError
from minillama.files import temporary_path
from minillama.nn import IGNORE
from minillama.text.mixture import Mixture, Shard, Stream, load_shard, validation_rows
from minillama.text.sources import BuiltinSource, builtin_sources, parse_data
from minillama.text.tokenizer import Tokenizer

TEXT = "the red kite of Ann and a blue drum in the old barn by the river where 12 and 34 are 46"
WORDS = TEXT.split()


def prose(n, seed=0):
    rng = np.random.default_rng(seed)
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), n))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([prose(2000)], 300)


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def documents(part, tokenizer):
    """The texts in a token stream."""
    ids = part.tokens.astype(int).tolist()
    starts = [i for i, id in enumerate(ids) if id == tokenizer.bos_id] + [len(ids)]
    assert ids[0] == tokenizer.bos_id
    assert all(ids[end - 1] == tokenizer.eos_id for end in starts[1:])
    return [tokenizer.decode(ids[start + 1:end - 1]) for start, end in pairwise(starts)]


def test_text_file_is_one_document_whose_end_is_held_out(tmp_path, tokenizer):
    text = prose(3000, 1) + " größer 你好 🙂 "
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    shard = load_shard(parse_data([str(tmp_path / "a.txt")])[0], 1.0, tokenizer, tmp_path / "cache", 0.1)
    (train,), (val,) = documents(shard.train, tokenizer), documents(shard.val, tokenizer)
    assert train + val == text
    assert shard.val.bytes / (shard.train.bytes + shard.val.bytes) == pytest.approx(0.1, abs=1e-3)
    assert shard.val.scored == len(shard.val.tokens) - 1
    assert shard.val.floor is None


def test_a_cut_never_splits_a_character(tmp_path, tokenizer):
    text = "🙂" * 50
    for fraction in (0.1, 0.11, 0.12, 0.13, 0.137):
        (tmp_path / "a.txt").write_text(text, encoding="utf-8")
        shard = load_shard(parse_data([str(tmp_path / "a.txt")])[0], 1.0, tokenizer, tmp_path / "cache", fraction)
        assert documents(shard.train, tokenizer)[0] + documents(shard.val, tokenizer)[0] == text


def test_long_text_is_tokenised_in_pieces_like_in_one(tmp_path, tokenizer, monkeypatch):
    from minillama.text import sources

    text = prose(5000, 2)
    (tmp_path / "a.txt").write_text(text)
    monkeypatch.setattr(sources, "CHUNK", 997)
    shard = load_shard(parse_data([str(tmp_path / "a.txt")])[0], 1.0, tokenizer, tmp_path / "cache", 0.1)
    train = text[:shard.train.bytes]
    assert shard.train.tokens.tolist() == tokenizer.encode(train, bos=True, eos=True)


def test_equal_documents_fall_on_the_same_side(tmp_path, tokenizer):
    """Duplicates are the usual way validation text leaks into training."""
    texts = [prose(8, seed) for seed in range(100)]
    path = write_jsonl(tmp_path / "a.jsonl", texts * 3)
    shard = load_shard(parse_data([path])[0], 1.0, tokenizer, tmp_path / "cache", 0.2)
    train, val = documents(shard.train, tokenizer), documents(shard.val, tokenizer)
    assert not set(train) & set(val)
    assert sorted(train + val) == sorted(texts * 3)
    assert len(set(val)) == 20


def test_builtin_validation_never_in_training(tmp_path, tokenizer):
    for source in builtin_sources(5, 60_000):
        shard = load_shard(source, 1.0, tokenizer, tmp_path / "cache", 0.1)
        assert not set(documents(shard.train, tokenizer)) & set(documents(shard.val, tokenizer))
        assert 0.05 < shard.val.documents / (shard.val.documents + shard.train.documents) < 0.15


def test_builtin_floor_is_the_information_of_the_held_out_documents(tmp_path, tokenizer):
    from minillama.text import corpus

    shard = load_shard(BuiltinSource("stories", 1.0, 5, 30_000), 1.0, tokenizer, tmp_path / "cache", 0.1)
    bits = sum(corpus.derive("stories", text).bits for text in documents(shard.val, tokenizer))
    assert shard.val.floor == pytest.approx(bits * np.log(2) / shard.val.scored)
    assert shard.val.scored == len(shard.val.tokens) - shard.val.documents


def test_cache_is_keyed_by_content(tmp_path, tokenizer):
    path, cache = tmp_path / "a.txt", tmp_path / "cache"
    load = lambda tok=tokenizer: load_shard(parse_data([str(path)])[0], 1.0, tok, cache, 0.1)  # noqa: E731
    path.write_text(prose(500))
    first = load()
    assert len(list(cache.iterdir())) == 1
    load()
    assert len(list(cache.iterdir())) == 1
    path.write_text(prose(500, 9))
    assert load().train.tokens.tolist() != first.train.tokens.tolist()
    load(Tokenizer.train([prose(2000)], 290))
    assert len(list(cache.iterdir())) == 3
    assert not list(cache.glob("*.tmp"))


def test_leftovers_of_the_dead_are_removed_and_of_the_living_are_not(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text(prose(500))
    source, cache = parse_data([str(tmp_path / "a.txt")])[0], tmp_path / "cache"
    load_shard(source, 1.0, tokenizer, cache, 0.1)
    (folder,) = cache.iterdir()
    living, dead = (temporary_path(folder, process) for process in (os.getppid(), dead_process()))
    folder.rename(living)
    dead.mkdir()
    load_shard(source, 1.0, tokenizer, cache, 0.1)
    assert sorted(cache.iterdir()) == sorted([folder, living])


def test_nothing_is_left_of_a_failed_tokenisation(tmp_path, tokenizer):
    path = tmp_path / "a.txt"
    path.write_bytes(b"good " * 1000 + b"\xff")
    with pytest.raises(InputError, match=r"a\.txt is not UTF-8: byte 0xff at offset 5000"):
        load_shard(parse_data([str(path)])[0], 1.0, tokenizer, tmp_path / "cache", 0.1)
    assert not list((tmp_path / "cache").iterdir())


def fake_shard(name, share, fill, n=5000):
    part = Stream(np.full(n, fill, np.uint16), n, n, 1, None)
    return Shard(name, share, part, part)


def test_shares_are_by_token():
    """35/40/25 over many steps to a tenth of a percent, and within one row in every single batch."""
    mixture = Mixture([fake_shard("a", 0.35, 10), fake_shard("b", 0.40, 20, 50_000), fake_shard("c", 0.25, 30)], 16, 0, 1)
    counts = np.array([[(mixture.batch(step, 16)[0] == fill).all(1).sum() for fill in (10, 20, 30)] for step in range(2000)])
    assert (counts.sum(1) == 16).all()
    assert np.abs(counts - 16 * np.array([0.35, 0.40, 0.25])).max() < 1
    assert np.abs(counts.mean(0) / 16 - [0.35, 0.40, 0.25]).max() < 1e-3


def test_a_single_row_draws_every_source():
    mixture = Mixture([fake_shard("a", 0.7, 10), fake_shard("b", 0.3, 20)], 16, 0, 1)
    drawn = [mixture.batch(step, 1)[0][0, 0] for step in range(2000)]
    assert np.mean(np.equal(drawn, 10)) == pytest.approx(0.7, abs=0.04)


def test_batch_is_a_function_of_seed_and_step():
    shard = Shard("a", 1.0, Stream(np.arange(1000, dtype=np.uint16), 1000, 1000, 1, None), None)
    first, again, other = Mixture([shard], 16, 7, 1), Mixture([shard], 16, 7, 1), Mixture([shard], 16, 8, 1)
    for step in (1, 900, 2):
        assert np.array_equal(first.batch(step, 4), again.batch(step, 4))
    assert not np.array_equal(first.batch(1, 4), first.batch(2, 4))
    assert not np.array_equal(first.batch(1, 4), other.batch(1, 4))
    tokens, targets = first.batch(3, 4)
    assert np.array_equal(tokens + 1, np.where(targets == IGNORE, 1, targets))


def test_the_start_of_a_document_is_not_predicted():
    shard = Shard("a", 1.0, Stream(np.array([1, 5, 6, 2] * 50, np.uint16), 150, 1, 50, None), None)
    tokens, targets = Mixture([shard], 8, 0, 1).batch(1, 4)
    assert (targets == IGNORE).sum() == 4 * 2
    assert not (targets == 1).any()
    assert (tokens[:, 1:][targets[:, :-1] == IGNORE] == 1).all()


def test_epochs():
    mixture = Mixture([fake_shard("a", 0.25, 10, 1000), fake_shard("b", 0.75, 20, 6000)], 16, 0, 1)
    assert mixture.epochs(8000) == {"a": 2.0, "b": 1.0}


def test_too_short():
    with pytest.raises(InputError, match=r"a must have at least 17 training tokens \(seq_len 16 \+ 1\), got 16"):
        Mixture([fake_shard("a", 1.0, 10, 16)], 16, 0, 1)


@pytest.mark.parametrize("seq_len", [1, 3, 4, 5, 7, 13, 100])
def test_validation_scores_every_token_once(seq_len):
    """Whole documents where they fit, longer ones in pieces: each token is a target exactly once, <s> never."""
    stream = np.array([1, *range(10, 14), 2, 1, *range(20, 22), 2, 1, *range(30, 42), 2, 1, 50, 2], np.uint16)
    targets = []
    for start, end in validation_rows(stream, seq_len, 1):
        assert 1 < end - start <= seq_len + 1
        targets += [i for i in range(start + 1, end) if stream[i] != 1]
    assert targets == [i for i, id in enumerate(stream) if id != 1]


def test_memory_stays_flat(tmp_path):
    """15 MB of text are prepared within 40 MB of what 5 MB take: their ids alone, kept in a list, would be over 100 MB more."""
    script = """
import sys
from pathlib import Path
from minillama.machine import peak_memory
from minillama.text.mixture import load_shard
from minillama.text.sources import parse_data
from minillama.text.tokenizer import Tokenizer
tokenizer = Tokenizer.load(sys.argv[1])
load_shard(parse_data([sys.argv[2]])[0], 1.0, tokenizer, Path(sys.argv[3]), 0.1)
print(peak_memory() // 10**6)
"""
    Tokenizer.train([prose(2000)], 300).save(tmp_path / "t.model")
    megabyte = (prose(250_000) + " ")[:1_000_000]
    peaks = []
    for n in (5, 15):
        (tmp_path / f"{n}.txt").write_text(megabyte * n)
        command = [sys.executable, "-c", script, tmp_path / "t.model", tmp_path / f"{n}.txt", tmp_path / "cache"]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 40
