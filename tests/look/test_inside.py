"""What is seen of a model, each against another way to get it: the loss, attention written out, shorter models, finite differences."""
import dataclasses

import numpy as np
import pytest
from helpers import large_params
from tolerances import EXACT, FINITE_DIFFERENCE, LOGIT_PARTS, ORACLE

from minillama.config import ModelConfig
from minillama.errors import InputError
from minillama.look import inside
from minillama.nn import block, cross_entropy_forward, linear_forward, rmsnorm_forward, rope_forward, rope_tables

CONFIG = ModelConfig(dim=12, n_layers=3, n_heads=2, vocab_size=11, multiple_of=5, max_seq_len=150, norm_eps=1e-2)


@pytest.fixture(scope="module")
def params():
    return {name: array.astype(np.float64) for name, array in large_params(CONFIG).items()}


@pytest.fixture(scope="module", params=[1, 2, 9, 133], ids=lambda T: f"T{T}")
def tokens(request):
    """Ids that repeat; 133 positions are three blocks of queries, the last one short."""
    return np.random.default_rng(request.param).integers(0, CONFIG.vocab_size, request.param)


@pytest.fixture
def run(tokens, params):
    return inside.forward(tokens, params, CONFIG)


def close(left, right, tolerance=ORACLE):
    assert left.shape == right.shape
    assert left.size == 0 or np.abs(left - right).max() <= tolerance * max(np.abs(right).max(), 1)


def test_losses_are_the_models(tokens, run):
    losses = inside.losses(run.logits, tokens)
    assert losses.shape == (len(tokens) - 1,)
    if len(tokens) > 1:
        close(losses.mean(), cross_entropy_forward(run.logits[None, :-1], tokens[None, 1:])[0])


def test_log_probs_of_large_logits_are_exact():
    ln_p = inside.log_probs(np.array([[3e4, 3e4, -3e4]], np.float32))
    assert np.isfinite(ln_p).all() and ln_p.dtype == np.float64
    close(ln_p, np.array([[-np.log(2), -np.log(2), -6e4 - np.log(2)]]))


def test_entropy_is_the_loss_it_expects(run):
    p = np.exp(run.logits) / np.exp(run.logits).sum(-1, keepdims=True)
    close(inside.entropy(run.logits), (p * -np.log(p)).sum(-1))


def test_attention_is_softmax_of_scores(tokens, params, run):
    maps = inside.attention(run)
    T, heads = len(tokens), (1, len(tokens), CONFIG.n_heads, CONFIG.head_dim)
    assert maps.shape == (CONFIG.n_layers, CONFIG.n_heads, T, T)
    close(maps.sum(-1), np.ones(maps.shape[:3]))
    n = rmsnorm_forward(params["tok_embeddings"][tokens][None], params["layers.0.attention_norm"], CONFIG.norm_eps)[0]
    tables = rope_tables(T, CONFIG.head_dim, CONFIG.rope_theta, np.float64)
    q, k = (rope_forward(linear_forward(n, params[f"layers.0.{name}"])[0].reshape(heads), *tables)[0][0] for name in ("wq", "wk"))
    scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(CONFIG.head_dim)
    e = np.exp(scores - scores.max(-1, keepdims=True)) * np.tri(T)
    close(maps[0], e / e.sum(-1, keepdims=True))


def test_one_row_of_attention_is_a_row_of_the_map(tokens, run):
    maps = inside.attention(run)
    for position in {0, len(tokens) // 2, len(tokens) - 1}:
        close(inside.attention_row(run, position), maps[:, :, position], EXACT)


def test_stream_begins_as_the_embedding_and_ends_before_the_head(tokens, params, run):
    points = inside.stream(run)
    assert points.shape == (2 * CONFIG.n_layers + 1, len(tokens), CONFIG.dim)
    close(points[0], params["tok_embeddings"][tokens], EXACT)
    close(linear_forward(rmsnorm_forward(points[-1], params["norm"], CONFIG.norm_eps)[0], params["output"])[0], run.logits)


def test_lens_after_a_layer_is_the_model_that_ends_there(tokens, params, run):
    seen = list(inside.lens(run, params, CONFIG))
    assert len(seen) == CONFIG.n_layers + 1
    close(seen[-1], run.logits, EXACT)
    for layers in range(1, CONFIG.n_layers + 1):
        shorter = dataclasses.replace(CONFIG, n_layers=layers)
        close(seen[layers], inside.forward(tokens, params, shorter).logits)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, ORACLE), (np.float32, LOGIT_PARTS)], ids=["float64", "float32"])
def test_contributions_add_up_to_the_logit(tokens, params, dtype, tolerance):
    cast = {name: array.astype(dtype) for name, array in params.items()}
    run, targets = inside.forward(tokens, cast, CONFIG), tokens[1:]
    parts = inside.contributions(run, targets, cast, CONFIG)
    assert parts.shape == (len(targets), 2 * CONFIG.n_layers + 1)
    close(parts.sum(1), run.logits[np.arange(len(targets)), targets].astype(np.float64), tolerance)


@pytest.mark.parametrize("name, part", [("layers.0.wo", 1), ("layers.1.w2", 4), ("layers.2.wo", 5)])
def test_what_writes_nothing_contributes_nothing(params, name, part):
    tokens = np.arange(9)
    silent = params | {name: np.zeros_like(params[name])}
    parts = inside.contributions(inside.forward(tokens, silent, CONFIG), tokens[1:], silent, CONFIG)
    assert (np.abs(parts).max(0) == 0).tolist() == [i == part for i in range(2 * CONFIG.n_layers + 1)]


def test_ablation_is_a_head_that_says_nothing(tokens, params, run, monkeypatch):
    """Another way to switch a head off: what it found is 0 before wo."""
    change = inside.ablation(tokens, params, CONFIG)
    assert change.shape == (CONFIG.n_layers * CONFIG.n_heads, len(tokens) - 1)
    plain, before = block.attention_forward, inside.losses(run.logits, tokens)
    for row, (layer, head) in zip(change, np.ndindex(CONFIG.n_layers, CONFIG.n_heads)):
        calls = iter(range(CONFIG.n_layers))

        def silenced(q, k, v, layer=layer, head=head, calls=calls):
            out, cache = plain(q, k, v)
            if next(calls) == layer:
                out[:, :, head] = 0
            return out, cache

        with monkeypatch.context() as patch:
            patch.setattr(block, "attention_forward", silenced)
            close(row, inside.losses(inside.forward(tokens, params, CONFIG).logits, tokens) - before)


def test_switching_heads_off_leaves_the_models_own_weights_alone(params):
    kept = {name: array.copy() for name, array in params.items()}
    changed = inside.without_heads(params, CONFIG, [(0, 1), (0, 0), (2, 1)])
    assert all((params[name] == kept[name]).all() for name in params)
    assert {name for name in params if (changed[name] != kept[name]).any()} == {"layers.0.wo", "layers.2.wo"}
    assert not changed["layers.0.wo"].any()


def slopes(tokens, asked, params, moved):
    """Central differences in float64, h = 1e-5: of the losses asked about, along a direction of every place's embedding.

    moved: (n, T, D)    the direction for each loss and each place; equal tokens are moved one by one
    """
    own, found, h = dataclasses.replace(CONFIG, vocab_size=len(tokens)), np.zeros(moved.shape[:2]), 1e-5
    for i, s in np.ndindex(found.shape):
        sides = []
        for sign in (h, -h):
            x = params["tok_embeddings"][tokens]
            x[s] += sign * moved[i, s]
            logits = inside.forward(np.arange(len(tokens)), params | {"tok_embeddings": x}, own).logits
            sides.append(inside.losses(logits, tokens)[asked[i] - 1])
        found[i, s] = (sides[0] - sides[1]) / (2 * h)
    return found


def test_influence_is_the_slope_of_the_loss(params):
    tokens = np.array([3, 1, 3, 3, 7, 0, 1, 3, 9, 9, 2, 3])
    asked = [11, 1, 4, 5, 6, 7, 8, 9, 10, 2]                     # more than are computed in one batch, in any order
    assert len(asked) > inside.ROWS
    found = inside.influence(tokens, asked, params, CONFIG)
    x = params["tok_embeddings"][tokens]                         # (T, D)
    close(found.signed, -slopes(tokens, asked, params, np.tile(x, (len(asked), 1, 1))), FINITE_DIFFERENCE)
    along = [slopes(tokens, asked, params, np.broadcast_to(row, (len(asked), *x.shape))) for row in np.eye(CONFIG.dim)]
    close(found.sensitivity, np.sqrt(np.square(along).sum(0)) * np.linalg.norm(x, axis=1), FINITE_DIFFERENCE)
    for rows in found:
        assert all((row[t:] == 0).all() and row[:t].all() for t, row in zip(asked, rows))


def test_too_many_tokens_are_refused(params):
    with pytest.raises(InputError, match=r"at most 150 tokens \(max_seq_len\), got 151"):
        inside.forward(np.zeros(151, int), params, CONFIG)
