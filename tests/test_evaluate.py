"""Evaluation: every token once, padding never, sources weighted by share."""
import math

import numpy as np
import pytest

from minillama.engine.numpy_engine import NumpyEngine
from minillama.evaluate import Score, evaluate, format_scores, mean_loss, mix_floor, summary
from minillama.nn import IGNORE
from minillama.text.mixture import Mixture, Shard, Stream

BOS, EOS = 1, 2
DOCUMENTS = [[BOS, 5, 6, 7, 8, 3, 9, 10, EOS], [BOS, 4, EOS], [BOS, 7, 7, 7, 5, 6, 8, EOS], [BOS, *range(3, 11), *range(3, 11), EOS]]
STREAM = np.concatenate(DOCUMENTS).astype(np.uint16)


@pytest.fixture
def engine(tiny):
    engine = NumpyEngine(tiny, threads=1)
    for array in engine.params.values():
        if array.ndim > 1:
            array *= 20                                          # far from uniform, so that every token costs something else
    return engine


def nats(engine, document):
    """The loss of one document's tokens from the logits, by hand."""
    logits = engine.logits(np.array([document[:-1]]))[0].astype(np.float64)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return -sum(logits[i, token] for i, token in enumerate(document[1:]) if token != BOS)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_mean_loss_by_hand(batch_size, engine):
    """Rows of 8: document 1 alone, 2 alone (3 does not fit beside it), 3 alone, 4 in pieces of 8, 8 and 1."""
    long = DOCUMENTS[3]
    rows = [*DOCUMENTS[:3], long[:9], long[8:17], long[16:]]
    expected = sum(nats(engine, row) for row in rows) / sum(len(document) - 1 for document in DOCUMENTS)
    seen = []
    assert mean_loss(engine, STREAM, 8, BOS, batch_size, progress=seen.append) == pytest.approx(expected, rel=1e-5)
    assert sum(seen) == sum(len(document) - 1 for document in DOCUMENTS)


def test_documents_share_a_row(engine):
    """Rows of 12: documents 1 and 2 stand together, and the <s> between them is not scored."""
    together = DOCUMENTS[0] + DOCUMENTS[1]
    rows = [together, DOCUMENTS[2]]
    expected = sum(nats(engine, row) for row in rows) / (8 + 2 + 7)
    assert mean_loss(engine, STREAM[:20], 12, BOS, 2) == pytest.approx(expected, rel=1e-5)


def test_a_limit_scores_rows_spread_over_the_whole_stream(engine):
    """34 tokens in 6 rows of 8, 2, 7, 8, 8 and 1; a third of them is every third row: the first and the fourth."""
    rows = [DOCUMENTS[0], DOCUMENTS[3][:9]]
    expected = sum(nats(engine, row) for row in rows) / 16
    assert evaluate(engine, [shard("a", 1.0, None, 34, 50)], 8, BOS, 2, limit=34 / 3)["a"].loss == pytest.approx(expected, rel=1e-5)


def shard(name, share, loss_floor, tokens, size):
    return Shard(name, share, None, Stream(STREAM, tokens, size, 4, loss_floor))


def test_summary_weights_by_share():
    shards = [shard("a", 0.25, 1.0, 100, 300), shard("b", 0.75, 2.0, 100, 100)]
    scores = {"a": Score(2.0, 0.9, 1.0, 0.25, 1.5), "b": Score(4.0, 5.0, 2.0, 0.75, None)}
    result = summary(shards, scores)
    assert result["loss"] == 3.5
    assert result["floor"] == mix_floor(shards) == 1.75
    assert result["perplexity"] == pytest.approx(math.exp(3.5))
    assert result["bits_per_byte"] == pytest.approx(3.5 / math.log(2) / (0.25 * 3 + 0.75 * 1))
    assert result["sources"]["a"] == {"loss": 2.0, "bits_per_byte": 0.9, "floor": 1.0, "share": 0.25, "epochs": 1.5, "which_source": None}
    lines = format_scores(result).splitlines()
    assert len(lines) == 4
    assert "+100.0%" in lines[1]


def test_bits_per_byte(engine):
    score = evaluate(engine, [shard("a", 1.0, None, 34, 50)], 8, BOS)["a"]
    assert score.bits_per_byte == pytest.approx(score.loss / math.log(2) * 34 / 50)
    assert score.floor is None


def test_an_unknown_floor_leaves_the_mix_unknown():
    assert mix_floor([shard("a", 0.5, 1.0, 1, 1), shard("b", 0.5, None, 1, 1)]) is None


class Perfect:
    """Knows the law of the rows that are trained on: which source with probability p, then every document with its own."""

    def __init__(self, p, nats):
        self.p, self.nats = p, nats

    def loss(self, tokens, targets):
        total = 0.0
        for row, scored in zip(tokens, targets):
            name = "a" if row[1] < 6 else "b"
            total += -math.log(self.p[name]) + self.nats[name] * (scored == EOS).sum()
        return total, int((targets != IGNORE).sum())


def test_a_perfect_model_loses_the_floor_and_which_source(rng):
    """Two sources: one letter of three, or four of four. How often training rows that start with <s> are of each is counted, too."""
    bits = {"a": math.log2(3), "b": 4 * math.log2(4)}
    letters = {"a": lambda: rng.integers(3, 6, 1), "b": lambda: rng.integers(6, 10, 4)}

    def stream(name, count):
        tokens = np.concatenate([[BOS, *letters[name](), EOS] for _ in range(count)]).astype(np.uint16)
        scored = len(tokens) - count
        return Stream(tokens, scored, scored, count, bits[name] * math.log(2) * count / scored)

    shards = [Shard(name, share, stream(name, 400), stream(name, 150)) for name, share in (("a", 0.3), ("b", 0.7))]
    mixture = Mixture(shards, 14, 0, BOS)
    windows = np.concatenate([mixture.batch(step, 500)[0] for step in range(40)])
    begun = windows[windows[:, 0] == BOS][:, 1]
    p = {"a": 0.3 / 3 / (0.3 / 3 + 0.7 / 6), "b": 0.7 / 6 / (0.3 / 3 + 0.7 / 6)}
    assert (begun < 6).mean() == pytest.approx(p["a"], abs=4 * math.sqrt(p["a"] * p["b"] / len(begun)))
    assert abs((begun < 6).mean() - 0.3) > 0.1                   # it is not the share: the sources' documents differ in length
    scores = evaluate(Perfect(p, {name: cost * math.log(2) for name, cost in bits.items()}), shards, 14, BOS)
    for score in scores.values():
        assert score.which_source > 0.01 and score.loss == pytest.approx(score.floor + score.which_source, rel=1e-12)
    result = summary(shards, scores)
    assert result["loss"] == pytest.approx(result["floor"] + result["which_source"], rel=1e-12)
    assert format_scores(result).splitlines()[-1] == (f"of the {result['which_source']:.4f} above the floor, {result['which_source']:.4f} "
                                                      "are the price of finding out which source a row is from")
    rows = {"a": math.ceil(150 / 5), "b": 150 // 2}              # of at most 15 tokens: five documents of 3, or two of 6
    for name, score in scores.items():
        assert score.which_source == pytest.approx(-rows[name] * math.log(p[name]) / shards[name == "b"].val.scored, rel=1e-12)


def test_which_source_of_one_source_costs_nothing_and_of_unknown_ones_is_unknown(engine):
    whole = Stream(STREAM, 34, 50, 4, 1.0)
    one = evaluate(engine, [Shard("a", 1.0, whole, whole)], 8, BOS)
    assert one["a"].which_source == 0
    assert "which source" not in format_scores(summary([Shard("a", 1.0, whole, whole)], one))
    for train, val in ((None, whole), (whole, whole._replace(floor=None))):
        shards = [Shard("a", 0.5, whole, whole), Shard("b", 0.5, train, val)]
        scores = evaluate(engine, shards, 8, BOS)
        assert [score.which_source for score in scores.values()] == [None, None]
        assert summary(shards, scores)["which_source"] is None
        assert "which source" not in format_scores(summary(shards, scores))


def test_rows_that_start_inside_a_document_are_not_counted(engine):
    """In rows of 8, document 4 takes three, of which one starts with it."""
    whole = Stream(STREAM, 34, 50, 4, 1.0)
    scores = evaluate(engine, [Shard(name, 0.5, whole, whole) for name in "ab"], 8, BOS)
    assert scores["a"].which_source == pytest.approx(4 * math.log(2) / 34)
