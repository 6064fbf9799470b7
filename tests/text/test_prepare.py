"""What a tokenizer learns from: all of a small text, an even sample of a large one, nothing that is held out."""
import json

import pytest

from minillama.text import prepare
from minillama.text.prepare import train_tokenizer
from minillama.text.sources import builtin_sources, parse_data

LATE = "Ж"


def sample(path, val_fraction=0.1):
    return list(prepare._training_text(parse_data([str(path)]), val_fraction))


def test_a_small_text_is_taken_as_it_is(tmp_path):
    text = "the red kite " * 1000
    (tmp_path / "a.txt").write_text(text)
    assert "".join(sample(tmp_path / "a.txt")) == text[:len(text) * 9 // 10]


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_large_text_is_sampled_evenly(kind, tmp_path, monkeypatch):
    """Four quarters, each of its own letter: each gives a quarter of the sample, the held-out end nothing."""
    monkeypatch.setattr(prepare, "TOKENIZER_CHARACTERS", 40_000)
    monkeypatch.setattr(prepare, "STRETCH", 500)
    quarters = [letter * 50_000 for letter in "abcd"]
    path = tmp_path / f"a.{kind}"
    if kind == "txt":
        path.write_text("".join(quarters) + "z" * 22_222)        # the last tenth is held out
    else:
        path.write_text("".join(json.dumps({"text": q[:97] + str(i)}) + "\n" for q in quarters for i in range(500)))
    text = "".join(sample(path))
    assert 0.7 * 40_000 < len(text) <= 40_000
    for letter in "abcd":
        assert text.count(letter) / sum(text.count(one) for one in "abcd") == pytest.approx(0.25, abs=0.03)
    assert "z" not in text


def test_a_character_that_comes_late_is_learned(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "TOKENIZER_CHARACTERS", 50_000)
    path = tmp_path / "a.txt"
    path.write_text("ab " * 50_000 + f"{LATE} " * 25_000 + "ab " * 9000, encoding="utf-8")
    tokenizer = train_tokenizer(parse_data([str(path)]), "chars", 0.1, 300)
    assert len(tokenizer.encode(LATE)) == 2                      # the dummy prefix and the character


def test_of_the_built_in_text_the_first_documents_are_taken():
    """They come in random order; the default run's tokenizer, and with it its bits, depend on this."""
    source = builtin_sources(1, 3_000_000)[0]
    texts = [chunks[0] for side, chunks, _ in source.documents(0.1) if side == "train"]
    sample = list(prepare._training_text([source], 0.1))
    assert sample == texts[:len(sample)]
