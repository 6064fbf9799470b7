"""Views: every number in them is inside.py's, they fit JSON and one file, and what cannot be asked is refused in a sentence."""
import base64
import json
import math
import re

import numpy as np
import pytest
from tolerances import EXACT

from minillama.errors import InputError
from minillama.look import data, inside
from minillama.look.data import PATIENT_EFFORT, Session
from minillama.look.html import html
from minillama.run.folder import export_model, load
from minillama.text import corpus

STORY = corpus.document("stories", 3, 0).text
HOSTILE = "</script><script>alert(1)</script><!-- \u202e\u2066 \x00\x1b[2J {{view}} <img src=x onerror=alert(1)> \u2028\ufffd"
ROUNDED = 6e-6  # five digits


@pytest.fixture(scope="module")
def session(builtin):
    return Session(builtin)


@pytest.fixture(scope="module")
def view(session):
    return session.view(STORY, influence=True)


@pytest.fixture(scope="module")
def model(builtin):
    trained = load(builtin)
    return trained.config.model, dict(trained.params.items()), np.array(trained.tokenizer.encode(STORY, bos=True))


def embedded(page):
    """The view inside a page, as it is written there."""
    return re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)[1]


def near(left, right):
    left, right = np.array(left, np.float64), np.array(right, np.float64)
    assert left.shape == right.shape and np.abs(left - right).max() < ROUNDED


def test_a_view_is_json_and_has_a_place_for_every_token(view, model):
    config, _, tokens = model
    T, L, H = len(tokens), config.n_layers, config.n_heads
    assert json.loads(json.dumps(view, allow_nan=False)) == view
    assert [row["id"] for row in view["tokens"]] == tokens.tolist()
    assert "".join(row["text"] for row in view["tokens"]) == STORY == view["text"]
    assert bytes.fromhex(" ".join(row["bytes"] for row in view["tokens"])).decode() == STORY
    assert view["source"] == "stories" and view["context"] == 128 and view["live"] is False
    lengths = {"expected": T, "entropy": T, "influence": T, "ablation": L * H}
    assert {name: len(view[name]) for name in lengths} == lengths
    assert np.shape(view["contributions"]["target"]) == (T - 1, 2 * L + 1) and len(view["contributions"]["names"]) == 2 * L + 1
    assert np.shape(view["lens"]["top"]) == (L + 1, T, 2) and np.shape(view["lens"]["target_p"]) == (L + 1, T)
    assert np.shape(view["temperature"]["log_sum"]) == (T, len(view["temperature"]["grid"]))
    assert view["attention_shape"] == [L, H, T, T] and view["vocabulary"][1] == "<s>" and len(view["vocabulary"]) == 512
    assert view["checkpoints"] == view["history"]["checkpoints"] == ["step-000001", "step-000002"]


def test_the_numbers_are_those_of_inside(view, model):
    config, params, tokens = model
    run = inside.forward(tokens, params, config)
    losses = inside.losses(run.logits, tokens)
    near([row["loss"] for row in view["tokens"][1:]], losses)
    near(view["mean"]["loss"], losses.mean())
    near(view["entropy"], inside.entropy(run.logits))
    maps = np.frombuffer(base64.b64decode(view["attention"]), np.uint8).reshape(view["attention_shape"])
    assert np.abs(maps / 255 - inside.attention(run)).max() <= 0.5 / 255 + ROUNDED
    near(view["contributions"]["target"], inside.contributions(run, tokens[1:], params, config))
    near(view["contributions"]["logit"], run.logits[np.arange(len(losses)), tokens[1:]])
    near([row[1:] for row in view["ablation"]], inside.ablation(tokens, params, config))
    for name, rows in zip(("influence", "sensitivity"), inside.influence(tokens, range(1, len(tokens)), params, config)):
        assert [len(row) for row in view[name]] == list(range(len(tokens)))
        assert max(np.abs(np.array(view[name][t]) - rows[t - 1, :t]).max() for t in range(1, len(tokens))) < 1e-4
    last = [row[:-1] for row in view["lens"]["target_p"]][-1]
    near(last, np.exp(-losses))
    near(view["history"]["loss"][1][1:], losses)


def test_expected_is_the_likeliest_first_beside_what_is_known(view, session, model):
    config, params, tokens = model
    p = np.exp(inside.log_probs(inside.forward(tokens, params, config).logits))
    known = session.reader.expect(tokens.tolist())
    for row, probabilities, before in zip(view["expected"], p, known, strict=True):
        ids = [entry[0] for entry in row]
        assert len(ids) == 10 and [entry[1] for entry in row] == [view["vocabulary"][id] for id in ids]
        near([entry[2] for entry in row], np.sort(probabilities)[::-1][:10])
        near([entry[3] for entry in row], [before.tokens.get(id, 0) for id in ids])
    near([row["known"] for row in view["tokens"][1:]], [-math.log(b.tokens[id]) for b, id in zip(known, tokens[1:].tolist())])
    assert not any("clash" in row for row in view["tokens"])
    for tau in (0.1, 0.7, 2.0):
        column = [row[view["temperature"]["grid"].index(tau)] for row in view["temperature"]["log_sum"]]
        assert np.abs(np.array(column) - np.log((p ** (1 / tau)).sum(-1))).max() < 1e-4


def test_a_head_that_is_off(session, view):
    off = session.view(STORY, off=[(1, 0)])
    before, after = ([row["loss"] for row in one["tokens"][1:]] for one in (view, off))
    assert off["off"] == [[1, 0]] and before != after
    assert np.abs(np.array(after) - before - view["ablation"][2][1:]).max() < 3 * ROUNDED
    assert session.view(STORY)["tokens"] == view["tokens"]       # the session's weights are as they were


def test_other_requests_agree_with_the_view(session, view, model):
    config, params, tokens = model
    for t in (1, 5, len(tokens) - 1):
        answer = session.influence(STORY, None, t)
        for name in ("influence", "sensitivity"):
            row = answer[name]
            assert len(row) == len(tokens) and not any(row[t:]) and np.abs(np.array(row[:t]) - view[name][t]).max() < 1e-4
    maps = np.frombuffer(base64.b64decode(view["attention"]), np.uint8).reshape(view["attention_shape"])
    answer = session.attention(STORY, None, 5)
    row = np.frombuffer(base64.b64decode(answer["row"]), np.uint8).reshape(answer["shape"])
    assert np.abs(row - maps[:, :, 5]).max() == EXACT
    same = session.replace(STORY, None, 3, int(tokens[3]))
    assert same["losses"] == [row["loss"] for row in view["tokens"]] and same["text"] == STORY
    other = session.replace(STORY, None, 3, int(tokens[1]))
    assert other["losses"][:3] == same["losses"][:3] and other["losses"][3:] != same["losses"][3:]
    assert other["piece"] == view["tokens"][1]["piece"] and other["text"].count(view["tokens"][1]["text"]) > STORY.count(
        view["tokens"][1]["text"])


def test_checkpoints(builtin, session, view):
    old = session.view(STORY, "step-000001")
    assert old["checkpoint"] == "step-000001" and view["checkpoint"] == "step-000002"
    assert [row["loss"] for row in old["tokens"]] == old["history"]["loss"][0] == view["history"]["loss"][0] != view["history"]["loss"][1]
    assert Session(builtin, "step-000001").view(STORY)["tokens"] == old["tokens"]
    for name in ("step-000003", "../step-000001", "", "latest"):
        with pytest.raises(InputError, match="the checkpoint must be one of step-000001 to step-000002, got '"):
            session.view(STORY, name)


def test_a_dozen_checkpoints_and_their_weights_are_not_all_kept(session, monkeypatch):
    monkeypatch.setattr(data, "HISTORY", 1)
    session.view("Tom", "step-000001")
    session.view("Tom", "step-000002")
    assert len(session._loaded) <= 2


def test_documents_are_not_those_of_a_training(session, builtin_tokenizer):
    for source in corpus.SOURCES:
        one = session.document(source, 4)
        assert one == session.document(source, 4) != session.document(source, 5) and one["source"] == source
        assert corpus.derive(source, one["text"])
        assert one["text"] not in {corpus.document(source, seed, 4).text for seed in (0, 1337)}
    assert {session.document(None, seed)["source"] for seed in range(20)} == set(corpus.SOURCES)
    short = session.document("facts", 4, most=10)["text"]
    assert session.document("facts", 4)["text"].startswith(short) and len(builtin_tokenizer.encode(short, bos=True)) <= 10
    with pytest.raises(InputError, match="the source must be one of stories, facts, sums, got 'poems'"):
        session.document("poems", 0)


def test_a_run_on_a_file(finished, text):
    session = Session(finished)
    with open(text) as file:
        whole = file.read()
    assert session.sources == ["a"] and session.reader is None
    for seed in range(5):
        document = session.document(None, seed)["text"]
        assert document in whole[int(0.9 * len(whole)) - 1:]
        assert 200 < len(session.encode(document)) <= 256 == data.DOCUMENT
    shown = session.view(document[:50])
    assert shown["source"] is None and shown["mean"]["known"] is None
    assert all(row["known"] is row["options"] is None and "clash" not in row for row in shown["tokens"])
    assert all(entry[3] is None for row in shown["expected"] for entry in row)


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_model_from_elsewhere(builtin, view, tmp_path, to):
    export_model(builtin, to, "f32", tmp_path / "model")
    session = Session(tmp_path / "model")
    seen = session.view(STORY)
    losses = [[row["loss"] for row in one["tokens"][1:]] for one in (seen, view)]
    near(losses[0], losses[1])
    assert seen["checkpoints"] == seen["sources"] == seen["runs"] == [] and seen["checkpoint"] is seen["history"] is None
    with pytest.raises(InputError, match="was not trained here and has no text of its own: --text or --file says what to look at"):
        session.document()
    with pytest.raises(InputError, match="the checkpoint must be left out: this model has only one, got 'step-000001'"):
        session.view(STORY, "step-000001")


def test_compare_is_the_view_of_the_other_run(session, wide, view):
    other = session.compare(str(wide), STORY)
    assert other["run"] == str(wide) and other["text"] == STORY and other["tokens"] != view["tokens"]
    assert [row["known"] for row in other["tokens"]] == [row["known"] for row in view["tokens"]]
    assert session.compare(str(wide), STORY)["tokens"] == other["tokens"]
    with pytest.raises(InputError, match="does not exist"):
        session.compare("/no/such/run", STORY)


def test_what_the_grammar_excludes_is_marked_once(session):
    rows = session.view("Tom met Ann in the cave at 9:99. Tom")["tokens"]
    clash = [t for t, row in enumerate(rows) if "clash" in row]
    assert len(clash) == 1 and rows[clash[0]]["text"] == "9" and rows[clash[0] - 1]["text"] == ":"
    assert all((row["known"] is None) == (t == 0 or t >= clash[0]) for t, row in enumerate(rows))
    assert rows[clash[0]]["options"] == list("012345")
    unfinished = session.view("Tom met An")
    assert not any("clash" in row for row in unfinished["tokens"]) and unfinished["source"] == "stories"


def test_any_text_is_shown_or_refused(session):
    for text in ("", " ", HOSTILE, "🦁\u0301", "\n\n"):
        seen = session.view(text, influence=True)
        assert seen["text"] == text and len(seen["expected"]) == len(seen["tokens"])
        page = html(seen)
        assert json.loads(embedded(page)) == seen and "<" not in embedded(page) and "<script>alert" not in page
    for text, message in (("a" * 300, r"the text must have at most 128 tokens \(the context of this model\), got \d+"),
                          ("\ud800", r"an unpaired surrogate U\+D800 at character 0"),
                          ("Tom " * 250_000, r"at most 128 tokens .* got 250002")):
        for ask in (session.view, lambda text: session.replace(text, None, 1, 5), lambda text: session.influence(text, None, 1)):
            with pytest.raises(InputError, match=message):
                ask(text)


@pytest.mark.parametrize("ask, message", [
    (lambda s: s.view(STORY, off=[(2, 0)]), "from layer 0, head 0 to layer 1, head 1, got layer 2, head 0"),
    (lambda s: s.view(STORY, off=[(0, -1)]), "got layer 0, head -1"),
    (lambda s: s.replace(STORY, None, 0, 5), "the position must be from 1 to"),
    (lambda s: s.replace("Tom met", None, 3, 5), "the position must be from 1 to 2, the last token, got 3"),
    (lambda s: s.replace(STORY, None, 1, 512), r"a token id must be from 0 to 511 \(the vocabulary\), got 512"),
    (lambda s: s.influence("Tom met", None, 0), "the position must be from 1 to 2, the last token, got 0"),
    (lambda s: s.attention("Tom met", None, 3), "the position must be from 0 to 2, the last token, got 3"),
])
def test_bad_requests(session, ask, message):
    with pytest.raises(InputError, match=message):
        ask(session)


def test_what_takes_too_long_is_left_out(session):
    quick = session.view(STORY, influence=True, effort=1)
    assert quick["ablation"] is quick["influence"] is quick["sensitivity"] is None and session.view(STORY)["influence"] is None


def test_large_maps_and_vocabularies_are_left_out(session, monkeypatch):
    for limit in ("MAX_MAPS", "MAX_TEMPERATURE", "MAX_PIECES"):
        monkeypatch.setattr(data, limit, 100)
    seen = session.view(STORY)
    assert seen["attention"] is seen["temperature"] is seen["vocabulary"] is None and seen["attention_shape"][0] == 2


def test_weights_that_are_not_finite_are_refused(session, monkeypatch):
    broken = session.params() | {"norm": np.full(session.config.dim, np.nan, np.float32)}
    monkeypatch.setitem(session._loaded, session.shown, broken)
    with pytest.raises(InputError, match="the model's logits are not finite"):
        session.view(STORY)


def test_one_file_of_256_tokens_is_small_and_asks_nobody(wide):
    session = Session(wide)
    text = " ".join(corpus.document("facts", 3, i).text for i in range(9))
    text = session._cut(text, 255)
    seen = session.view(text, influence=True, effort=PATIENT_EFFORT)
    assert 250 <= len(seen["tokens"]) <= 256 and seen["influence"] and seen["ablation"] and seen["attention"]
    page = html(seen)
    assert len(page.encode()) <= 3_000_000
    code = re.sub(r"http://www\.w3\.org/[\w/.]+", "", page.replace(embedded(page), ""))  # the name of SVG, which nobody fetches
    assert not re.search(r"https?:|<iframe|@import|url\((?!data:)|[\s\"'](?:src|href)\s*=\s*[\"'](?!data:|#)", code)
    assert "connect-src 'none'" in page
