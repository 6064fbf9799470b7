"""eval --matrix: every model on every text in one unit, each cell what `eval` says of it, and only what all runs held out."""
import json
import math
import random
import shutil

import pytest
from helpers import SMALL, call, run

from minillama.report.matrix import format_matrix, score_matrix

pytestmark = pytest.mark.usefixtures("auto_is_numpy")


def documents(seed, words):
    rng = random.Random(seed)
    return "".join(json.dumps({"text": " ".join(rng.choice(words.split()) for _ in range(12))}) + "\n" for _ in range(200))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """a and b were trained on a text each, tuned from a on b, with a's tokenizer; mix on both, held out by another fraction."""
    path = tmp_path_factory.mktemp("matrix")
    (path / "a.jsonl").write_text(documents(0, "Ann Tom has a red kite and 12 blue drums"))
    (path / "b.jsonl").write_text(documents(1, "every river goes to the sea , slowly ."))
    (path / "other").mkdir()
    (path / "other" / "a.jsonl").write_text(documents(2, "one two three four"))
    a, b = (["--data", str(path / f"{name}.jsonl")] for name in "ab")
    assert run(path / "a", *a, *SMALL) == 0
    assert run(path / "b", *b, *SMALL[:-4], "--vocab-size", "chars") == 0
    assert run(path / "mix", *a, *b, *SMALL, "--val-fraction", "0.3") == 0
    assert run(path / "again", "--data", str(path / "other" / "a.jsonl"), *SMALL[:-4], "--vocab-size", "chars") == 0
    recipe = SMALL[SMALL.index("--batch-size"):SMALL.index("--embedding-std")]
    assert run(path / "tuned", "--from", str(path / "a"), *b, *recipe, "--seq-len", "16") == 0
    return path


def matrix(capsys, *paths):
    status, out, err = call(capsys, "eval", paths[0], "--matrix", *paths[1:], "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


def evaluated(capsys, path):
    """{source: (loss, bits per byte)} of `eval`."""
    sources = json.loads(call(capsys, "eval", path, "--json")[1])["sources"]
    return {name: (one["loss"], one["bits_per_byte"]) for name, one in sources.items()}


def test_one_tokenizer(folder, capsys):
    result = matrix(capsys, folder / "a", folder / "tuned")
    a, tuned = (result["models"][str(folder / name)] for name in ("a", "tuned"))
    assert result.keys() == {"unit", "models"} and result["unit"] == "nats/token"
    assert list(a) == list(tuned) == ["a", "b"]
    assert a["a"] == {"loss": pytest.approx(evaluated(capsys, folder / "a")["a"][0], rel=1e-9), "floor": None, "excess": None, "own": True}
    assert tuned["b"]["loss"] == pytest.approx(evaluated(capsys, folder / "tuned")["b"][0], rel=1e-9)
    assert (a["b"]["own"], tuned["a"]["own"], tuned["b"]["own"]) == (False, False, True)
    assert len({cell["loss"] for row in (a, tuned) for cell in row.values()}) == 4


def test_two_tokenizers_are_compared_by_bits_per_byte(folder, capsys):
    result = matrix(capsys, folder / "a", folder / "b")
    assert result["unit"] == "bits/byte"
    for name in "ab":
        cell = result["models"][str(folder / name)][name]
        assert cell["own"] and cell["loss"] == pytest.approx(evaluated(capsys, folder / name)[name][1], rel=1e-9)


def test_what_one_run_trained_on_is_not_scored_as_held_out(folder, capsys):
    """a held out a tenth of its text, mix three tenths: the tenth is scored in both."""
    result = matrix(capsys, folder / "mix", folder / "a")
    small = evaluated(capsys, folder / "a")["a"]
    a, mix = (result["models"][str(folder / name)] for name in ("a", "mix"))
    assert a["a"]["loss"] == pytest.approx(small[1], rel=1e-9)
    assert mix["a"]["loss"] != pytest.approx(evaluated(capsys, folder / "mix")["a"][1], rel=1e-6)
    assert mix["b"]["loss"] == pytest.approx(evaluated(capsys, folder / "mix")["b"][1], rel=1e-9)
    assert a["a"]["own"] and mix["a"]["own"] and not a["b"]["own"]
    assert matrix(capsys, folder / "a", folder / "mix")["models"] == result["models"]


def test_texts_of_one_name_are_told_apart(folder, capsys):
    result = matrix(capsys, folder / "a", folder / "again")
    assert [list(row) for row in result["models"].values()] == [[f"a of {folder / 'a'}", f"a of {folder / 'again'}"]] * 2


def test_floors_of_the_built_in_text(tmp_path, capsys, monkeypatch):
    """In nats/token and in bits/byte; the floor in bits/byte does not depend on the tokenizer."""
    monkeypatch.setattr("minillama.text.prepare.BUILTIN_CHARACTERS", 40_000)
    for name, vocabulary in (("x", "330"), ("y", "330"), ("z", "chars")):
        flags = [*SMALL, "--vocab-size", vocabulary, "--steps", "4" if name == "y" else "12"]
        assert run(tmp_path / name, *flags) == 0
    x, y, z = (tmp_path / name for name in "xyz")
    result = matrix(capsys, x, y)
    sources = json.loads(call(capsys, "eval", x, "--json")[1])["sources"]
    assert result["unit"] == "nats/token" and list(result["models"][str(y)]) == ["stories", "facts", "sums"]
    for name, cell in result["models"][str(x)].items():
        assert cell["floor"] == pytest.approx(sources[name]["floor"], rel=1e-9)
        assert cell["excess"] == pytest.approx(sources[name]["loss"] - sources[name]["floor"], rel=1e-6)
        assert result["models"][str(y)][name]["excess"] > cell["excess"] > 0
    bits = matrix(capsys, x, z)
    assert bits["unit"] == "bits/byte"
    for name, cell in bits["models"][str(x)].items():
        other = bits["models"][str(z)][name]
        assert cell["floor"] == pytest.approx(other["floor"], rel=1e-9)
        ratio = sources[name]["bits_per_byte"] / sources[name]["loss"]
        assert cell["floor"] == pytest.approx(sources[name]["floor"] * ratio, rel=1e-9)
        assert cell["excess"] == pytest.approx(cell["loss"] - cell["floor"], abs=1e-12)
    said = call(capsys, "eval", x, "--matrix", y)[1]
    assert said.splitlines()[-1] == "nats/token on held-out text; + above its floor; * a text of this run's own"
    assert f"{result['models'][str(x)]['facts']['excess']:.4f}*" in said and "facts +" in said


def test_format():
    cell = {"loss": 2.0, "floor": None, "excess": None, "own": False}
    result = {"unit": "bits/byte", "models": {"one": {"a": cell, "long name": cell | {"loss": 1.5, "own": True}}}}
    assert format_matrix(result).splitlines() == ["model         a   long name", "one      2.0000      1.5000*",
                                                  "bits/byte on held-out text; * a text of this run's own"]
    known = {"unit": "nats/token", "models": {"one": {"a": cell | {"floor": 1.25, "excess": 0.75}}}}
    assert format_matrix(known).splitlines()[:2] == ["model       a +", "one      0.7500"]


@pytest.mark.parametrize("case", ["no run", "twice", "nothing to score", "changed text", "none", "with --tasks"])
def test_bad_input_is_one_sentence(case, folder, tmp_path, capsys):
    a, others = folder / "a", [folder / "b"]
    if case == "no run":
        others, message = [tmp_path / "c"], f"{tmp_path / 'c'} does not exist"
    elif case == "twice":
        others, message = [folder / "b", a], f"the models of a matrix must differ, got {a} twice"
    elif case == "nothing to score":
        a, others = sorted((folder / "a" / "checkpoints").glob("step-*"))
        others = [others]
        message = f"none of {a}, {others[0]} was trained here, so there is no held-out text: eval MODEL --data FILE"
    elif case == "changed text":
        shutil.copytree(folder / "b", tmp_path / "b")
        kept = json.loads((tmp_path / "b" / "fingerprints.json").read_text())
        (tmp_path / "b" / "fingerprints.json").write_text(json.dumps(kept | {"text": {"b": "0"}}))
        others = [tmp_path / "b"]
        message = (f"the text of b has changed since {tmp_path / 'b'} was started: "
                   f"train --from {tmp_path / 'b'} --data FILE goes on with another text")
    elif case == "none":
        others, message = [], "argument --matrix: expected at least one argument (python -m minillama eval --help)"
    else:
        others, message = [folder / "b", "--tasks"], ("argument --tasks: not allowed with argument --matrix "
                                                     "(python -m minillama eval --help)")
    status, out, err = call(capsys, "eval", a, "--matrix", *others)
    assert (status, out, err) == (2, "", f"error: {message}\n")


def test_a_model_without_text_is_a_row_only(folder, capsys):
    checkpoint = sorted((folder / "a" / "checkpoints").glob("step-*"))[-1]
    result = matrix(capsys, folder / "a", checkpoint)
    assert result["unit"] == "nats/token"
    row = result["models"][str(checkpoint)]
    assert list(row) == ["a"] and not row["a"]["own"] and math.isfinite(row["a"]["loss"])


def test_threads_reach_the_engine(folder, monkeypatch):
    from minillama.config import EngineConfig
    from minillama.report import matrix as module

    given = []
    make = module.make_engine
    monkeypatch.setattr(module, "make_engine", lambda *a, threads, **b: given.append(threads) or make(*a, threads=threads, **b))
    score_matrix([folder / "a"], EngineConfig("numpy"), 1)
    assert given == [1]
