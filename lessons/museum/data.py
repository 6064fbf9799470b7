"""What lesson 12 puts in place of Mixture.batch: other ways to fill a batch, most of them wrong. `lessons/lab.py` patches them in."""
import numpy as np

from minillama.text.mixture import Mixture, mask_starts

STEPS = 200  # of the runs in which the sources come one after another
_right = Mixture.batch


def _rows(mixture, sources, rng, starts=None):
    """One window of each of these sources, as Mixture.batch cuts them; starts: stream -> the places it may begin, usually all."""
    T, windows = mixture.seq_len, []
    for source in sources:
        stream = mixture.shards[source].train.tokens
        places = np.arange(len(stream) - T) if starts is None else starts(stream[:len(stream) - T])
        start = rng.choice(places)
        windows.append(stream[start:start + T + 1])
    window = np.stack(windows).astype(np.int64)
    return window[:, :-1], mask_starts(window[:, 1:], mixture.bos_id)


def _sources(mixture, points):
    return np.minimum(np.searchsorted(mixture._cumulative, points, side="right"), len(mixture.shards) - 1)


def same_batch(mixture, step, rows):
    """The seed without the step: the batch of step 1, again and again."""
    return _right(mixture, 1, rows)


def one_after_another(mixture, step, rows):
    """The sources laid end to end: all of the first, then all of the second; in the end each has had its share."""
    point = min((step - 1) / STEPS, 1.0)
    return _rows(mixture, _sources(mixture, np.full(rows, point)), np.random.default_rng([mixture.seed, step]))


def independent(mixture, step, rows):
    """Every row draws its source by itself."""
    rng = np.random.default_rng([mixture.seed, step])
    return _rows(mixture, _sources(mixture, rng.random(rows)), rng)


def at_documents(mixture, step, rows):
    """Every row begins with a document. Not wrong: here a model can learn what comes first."""
    rng = np.random.default_rng([mixture.seed, step])
    points = (rng.random() + np.arange(rows)) / rows
    return _rows(mixture, _sources(mixture, points), rng, lambda stream: np.flatnonzero(stream == mixture.bos_id))
