"""Sampling: every knob does what it says, on probabilities one can compute by hand."""
import numpy as np
import pytest

from minillama.config import ModelConfig
from minillama.engine.numpy_engine import NumpyEngine
from minillama.errors import InputError
from minillama.generate import Sampling, generate, next_token

PROBS = np.array([0.1, 0.4, 0.2, 0.3])
LOGITS = np.log(PROBS).astype(np.float32) + 5


def frequencies(**settings):
    rng = np.random.default_rng(0)
    draws = [next_token(LOGITS, rng, Sampling(**settings)) for _ in range(4000)]
    return np.bincount(draws, minlength=4) / len(draws)


def test_temperature_one_draws_the_models_probabilities():
    assert np.abs(frequencies() - PROBS).max() < 0.03


def test_temperature_divides_the_logits():
    expected = PROBS**2 / (PROBS**2).sum()
    assert np.abs(frequencies(temperature=0.5) - expected).max() < 0.03


def test_temperature_zero_is_greedy():
    assert frequencies(temperature=0).tolist() == [0, 1, 0, 0]
    assert next_token(np.array([1.0, 3.0, 3.0]), np.random.default_rng(0), Sampling(temperature=0)) == 1


def test_top_k_keeps_the_likeliest():
    assert np.abs(frequencies(top_k=2) - [0, 4 / 7, 0, 3 / 7]).max() < 0.03


@pytest.mark.parametrize(("top_p", "kept"), [(0.3, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.71, [1, 2, 3]), (1.0, [0, 1, 2, 3])])
def test_top_p_keeps_the_smallest_set_that_holds_that_share(top_p, kept):
    seen = frequencies(top_p=top_p)
    assert np.flatnonzero(seen).tolist() == kept
    assert np.abs(seen[kept] - PROBS[kept] / PROBS[kept].sum()).max() < 0.03


def test_top_p_after_temperature():
    """At temperature 0.5 token 1 holds 0.53 of the mass, so top_p 0.5 keeps it alone."""
    assert frequencies(temperature=0.5, top_p=0.5).tolist() == [0, 1, 0, 0]


@pytest.fixture
def engine():
    return NumpyEngine(ModelConfig(dim=16, n_layers=2, n_heads=2, vocab_size=23, max_seq_len=12, multiple_of=8), threads=1)


def test_greedy_equals_the_full_forward(engine):
    """The cached decoder writes what argmax over the whole sequence, computed anew at every step, would write."""
    tokens = [1, 5, 9]
    written = list(generate(engine, tokens, 6, eos_id=-1, sampling=Sampling(temperature=0)))
    for token in written:
        assert token == int(engine.logits(np.array([tokens]))[0, -1].argmax())
        tokens = [*tokens, token]
    assert len(written) == 6


def test_seed(engine):
    write = lambda seed: list(generate(engine, [1], 9, eos_id=-1, sampling=Sampling(seed=seed)))  # noqa: E731
    assert write(3) == write(3)
    assert write(3) != write(4)


@pytest.mark.parametrize(("prompt", "n", "expected"), [(3, 5, 5), (3, 50, 10), (12, 50, 1)])
def test_it_stops_at_the_end_of_the_context(engine, prompt, n, expected):
    """The last position of the context still predicts one token."""
    assert len(list(generate(engine, [1] * prompt, n, eos_id=-1))) == expected


def test_it_stops_at_the_end_of_the_document(engine):
    eos = int(engine.logits(np.array([[1, 5]]))[0, -1].argmax())
    assert list(generate(engine, [1, 5], 9, eos_id=eos, sampling=Sampling(temperature=0))) == []


def test_a_prompt_longer_than_the_context(engine):
    with pytest.raises(InputError, match=r"the prompt must have at most 12 tokens \(the context of this model\), got 13$"):
        next(generate(engine, [1] * 13, 1, eos_id=2))
