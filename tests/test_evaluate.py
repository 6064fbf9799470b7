"""Evaluation: every token once, padding never, sources weighted by share."""
import math

import numpy as np
import pytest

from minillama.engine.numpy_engine import NumpyEngine
from minillama.evaluate import Score, evaluate, format_scores, mean_loss, mix_floor, summary
from minillama.text.mixture import Shard, Stream

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
    assert result["sources"]["a"] == {"loss": 2.0, "bits_per_byte": 0.9, "floor": 1.0, "share": 0.25, "epochs": 1.5}
    lines = format_scores(result).splitlines()
    assert len(lines) == 4
    assert "+100.0%" in lines[1]


def test_bits_per_byte(engine):
    score = evaluate(engine, [shard("a", 1.0, None, 34, 50)], 8, BOS)["a"]
    assert score.bits_per_byte == pytest.approx(score.loss / math.log(2) * 34 / 50)
    assert score.floor is None


def test_an_unknown_floor_leaves_the_mix_unknown():
    assert mix_floor([shard("a", 0.5, 1.0, 1, 1), shard("b", 0.5, None, 1, 1)]) is None
