"""What must hold whatever the numbers: causality, relative positions, scale invariance, ln V."""
import math

import numpy as np
import pytest
from tolerances import DECODE_FLOAT32, EXACT, ORACLE, TILES

from minillama import nn
from minillama.config import ModelConfig, preset
from minillama.errors import InputError
from minillama.nn import linear
from minillama.nn.decode import KVCache, model_decode

PAPER_PARAMETERS = {"7B": 6_738_415_616, "13B": 13_015_864_320, "33B": 32_528_943_616, "65B": 65_285_660_672}
PAPER_HIDDEN = {"7B": 11008, "13B": 13824, "33B": 17920, "65B": 22016}


@pytest.mark.parametrize("rows", range(1, linear.FEW_ROWS + 3))
def test_linear_on_few_rows(rng, rows):
    """Few rows take another way through NumPy: the same product, with and without a buffer."""
    x, weight = rng.standard_normal((1, rows, 7)), rng.standard_normal((5, 7))
    buffer = np.full((1, rows, 5), np.nan)
    for out in (None, buffer):
        product, (kept, _) = nn.linear_forward(x, weight, out=out)
        assert product.shape == (1, rows, 5)
        assert np.abs(product - np.einsum("bti,oi->bto", x, weight)).max() <= ORACLE
        assert kept is x
    assert product is buffer


@pytest.mark.parametrize("name", PAPER_PARAMETERS)
def test_paper_sizes(name):
    config = ModelConfig(**preset(name).model)
    assert nn.count_params(config) == PAPER_PARAMETERS[name]
    assert config.hidden_dim == PAPER_HIDDEN[name]


def test_small_presets():
    counts = {name: nn.count_params(ModelConfig(**preset(name).model)) for name in ("nano", "micro", "small")}
    assert counts["nano"] <= 1_000_000
    assert 7e6 < counts["micro"] < 9e6
    assert 36e6 < counts["small"] < 44e6


@pytest.mark.parametrize("forward", [nn.attention_forward, nn.flash_attention_forward], ids=["attention", "flash"])
def test_the_future_changes_nothing(forward, rng):
    q, k, v = rng.standard_normal((3, 2, 9, 3, 4))
    before, _ = forward(q, k, v)
    k[:, 5:], v[:, 5:] = 100.0, -100.0
    after, _ = forward(q, k, v)
    assert np.array_equal(before[:, :5], after[:, :5])
    assert not np.array_equal(before[:, 5:], after[:, 5:])


def test_the_future_changes_nothing_in_the_model(tiny, rng):
    params = nn.init_params(tiny, 0, np.float64)
    tokens = rng.integers(0, tiny.vocab_size, (1, 12))
    before, _ = nn.model_forward(tokens, params, tiny)
    tokens[:, 8:] = (tokens[:, 8:] + 1) % tiny.vocab_size
    after, _ = nn.model_forward(tokens, params, tiny)
    assert np.abs(before[:, :8] - after[:, :8]).max() == EXACT
    assert np.abs(before[:, 8:] - after[:, 8:]).max() > 1e-4


@pytest.mark.parametrize("size", [1, 3, 4, 64])
@pytest.mark.parametrize(("forward", "backward"), [
    (nn.attention_forward, nn.attention_backward),
    (nn.flash_attention_forward, nn.flash_attention_backward),
], ids=["attention", "flash"])
def test_blocks_and_tiles_change_rounding_only(forward, backward, size, rng):
    q, k, v, dout = rng.standard_normal((4, 2, 13, 3, 4)) * 3
    plain, cache = nn.attention_forward(q, k, v)
    cut, cut_cache = forward(q, k, v, size)
    assert np.abs(plain - cut).max() <= TILES
    for name, a, b in zip("qkv", nn.attention_backward(dout, cache), backward(dout, cut_cache)):
        assert np.abs(a - b).max() <= TILES, f"d{name}"


@pytest.mark.parametrize("block", [1, 3, 64])
def test_queries_may_be_the_last_positions(block, rng):
    """Cached decoding: the last 5 queries of 13 positions see what they see among all 13."""
    q, k, v = rng.standard_normal((3, 2, 13, 3, 4))
    whole, _ = nn.attention_forward(q, k, v)
    last, _ = nn.attention_forward(q[:, 8:], k, v, block)
    assert np.abs(last - whole[:, 8:]).max() <= TILES


@pytest.mark.parametrize("forward", [nn.attention_forward, nn.flash_attention_forward], ids=["attention", "flash"])
def test_huge_scores_do_not_overflow(forward, rng):
    """Scores of thousands: all the weight goes to the best key, and nothing becomes inf or NaN."""
    q, k, v = rng.standard_normal((3, 1, 9, 2, 4)).astype(np.float32)
    with np.errstate(over="raise", invalid="raise"):
        out, _ = forward(1000 * q, 1000 * k, v)
    scores = np.where(np.tri(9), np.einsum("bihd,bjhd->bhij", q, k), -np.inf)
    assert np.allclose(out, np.take_along_axis(v.swapaxes(1, 2), scores.argmax(-1)[..., None], 2).swapaxes(1, 2), atol=1e-5)


def test_flash_keeps_no_square(rng):
    """What flash saves for backward grows with T, not with T^2."""
    q, k, v = rng.standard_normal((3, 1, 512, 1, 4))
    _, cache = nn.flash_attention_forward(q, k, v, 64)
    assert max(np.size(kept) for kept in cache) == q.size


def test_rope_scores_depend_on_distance_alone(rng):
    cos, sin = nn.rope_tables(40, 8, dtype=np.float64)
    q, k = rng.standard_normal((2, 8))
    at = lambda x, t: nn.rope_forward(x.reshape(1, 1, 1, 8), cos[t:t + 1], sin[t:t + 1])[0].reshape(8)  # noqa: E731
    scores = [at(q, t + 5) @ at(k, t) for t in (0, 7, 30)]
    assert max(scores) - min(scores) <= ORACLE
    assert abs(at(q, 6) @ at(k, 0) - scores[0]) > 1e-3


def test_rope_rotates_adjacent_pairs():
    """Position 1, first pair: (1, 0) turns by 1 radian into (cos 1, sin 1), in channels 0 and 1."""
    cos, sin = nn.rope_tables(2, 4, dtype=np.float64)
    out, _ = nn.rope_forward(np.array([1.0, 0, 1, 0]).reshape(1, 1, 1, 4).repeat(2, 1), cos, sin)
    slow = 1 / math.sqrt(10000)
    assert np.allclose(out[0, 1, 0], [math.cos(1), math.sin(1), math.cos(slow), math.sin(slow)], atol=1e-15)


def test_rope_keeps_lengths(rng):
    x = rng.standard_normal((2, 5, 3, 4))
    out, _ = nn.rope_forward(x, *nn.rope_tables(5, 4, dtype=np.float64))
    assert np.allclose((x**2).sum(-1), (out**2).sum(-1))


def test_rmsnorm_ignores_scale(rng):
    x, weight, dout = rng.standard_normal((2, 3, 5)), rng.standard_normal(5), rng.standard_normal((2, 3, 5))
    out, cache = nn.rmsnorm_forward(x, weight, 0.0)
    assert np.abs(nn.rmsnorm_forward(1000 * x, weight, 0.0)[0] - out).max() <= ORACLE
    dx, _ = nn.rmsnorm_backward(dout, cache)
    assert np.abs((x * dx).sum(-1)).max() <= ORACLE  # so no gradient along x


def test_softmax_gradient_sums_to_zero(rng):
    logits, targets = rng.standard_normal((2, 3, 7)), rng.integers(0, 7, (2, 3))
    _, cache = nn.cross_entropy_forward(logits, targets)
    assert np.abs(nn.cross_entropy_backward(1.0, cache).sum(-1)).max() <= 1e-15


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_logits_cost_ln_v(dtype):
    targets = np.arange(6).reshape(2, 3)
    for level in (0, 50, -1e4):
        loss, _ = nn.cross_entropy_forward(np.full((2, 3, 17), level, dtype), targets)
        assert abs(loss - math.log(17)) < 1e-6


def test_cross_entropy_of_huge_logits():
    logits = np.array([[[1e4, -1e4, 0.0]]], np.float32)
    loss, cache = nn.cross_entropy_forward(logits, np.array([[1]]))
    assert loss == 2e4
    assert np.array_equal(nn.cross_entropy_backward(1.0, cache), np.array([[[1, -1, 0]]], np.float32))


def test_nothing_scored_is_zero():
    loss, cache = nn.cross_entropy_forward(np.ones((1, 2, 3)), np.full((1, 2), nn.IGNORE))
    assert loss == 0
    assert not nn.cross_entropy_backward(1.0, cache).any()


def test_swiglu_of_huge_gates():
    """sigmoid neither overflows nor warns."""
    gate = np.array([-1e4, 1e4], np.float32)
    with np.errstate(all="raise"):
        out, cache = nn.swiglu_forward(gate, np.ones(2, np.float32))
        nn.swiglu_backward(np.ones(2, np.float32), cache)
    assert np.array_equal(out, np.array([0, 1e4], np.float32))


def test_decoding_with_cache_equals_full_forward(rng):
    config = ModelConfig(**preset("nano").model)
    params = {name: rng.standard_normal(shape, np.float32) / (shape[-1] ** 0.5 if len(shape) > 1 else 1)
              for name, shape in nn.param_shapes(config).items()}
    tokens = rng.integers(0, config.vocab_size, (2, 50))
    full, _ = nn.model_forward(tokens, params, config)
    cache = KVCache(config, 2)
    steps = [tokens[:, :1], tokens[:, 1:20], *(tokens[:, t:t + 1] for t in range(20, 50))]
    decoded = np.concatenate([model_decode(step, params, config, cache) for step in steps], 1)
    assert np.abs(full).max() > 1
    assert np.abs(full - decoded).max() <= DECODE_FLOAT32
    assert decoded.dtype == np.float32


def test_initialisation():
    config = ModelConfig(dim=64, n_layers=8, n_heads=4, vocab_size=100)
    params = nn.init_params(config, 3)
    assert {name: array.shape for name, array in params.items()} == nn.param_shapes(config)
    for name, array in params.items():
        expected = 0.02 / 4 if name.endswith((".wo", ".w2")) else 0.02
        assert np.all(array == 1) if array.ndim == 1 else abs(array.std() / expected - 1) < 0.05, name
    for name, array in nn.init_params(config, 3, std=0).items():
        if array.ndim == 2 and name != "tok_embeddings":
            expected = array.shape[1] ** -0.5 / (4 if name.endswith((".wo", ".w2")) else 1)
            assert abs(array.std() / expected - 1) < 0.05, name
    again, other = nn.init_params(config, 3, np.float64), nn.init_params(config, 4)
    assert np.array_equal(again["output"].astype(np.float32), params["output"])
    assert not np.array_equal(other["output"], params["output"])


def test_an_untrained_model_knows_nothing(rng):
    config = ModelConfig(**preset("nano").model)
    tokens, targets = rng.integers(0, config.vocab_size, (2, 4, 64))
    loss, _ = nn.cross_entropy_forward(nn.model_forward(tokens, nn.init_params(config), config)[0], targets)
    assert abs(loss - math.log(config.vocab_size)) < 0.1


@pytest.mark.parametrize(("tokens", "message"), [
    (np.array([[0, 11]]), r"a token id must be from 0 to 10 \(the vocabulary\), got 11$"),
    (np.array([[-2, 1]]), r"a token id must be from 0 to 10 \(the vocabulary\), got -2$"),
    (np.zeros((1, 17), int), r"a sequence must have at most 16 tokens \(max_seq_len\), got 17$"),
])
def test_bad_tokens(tokens, message, tiny):
    with pytest.raises(InputError, match=message):
        nn.model_forward(tokens, nn.init_params(tiny), tiny)


def test_decoding_past_the_context(tiny):
    cache = KVCache(tiny)
    model_decode(np.zeros((1, 16), int), nn.init_params(tiny), tiny, cache)
    with pytest.raises(InputError, match=r"a sequence must have at most 16 tokens \(max_seq_len\), got 17$"):
        model_decode(np.zeros((1, 1), int), nn.init_params(tiny), tiny, cache)
