"""eval --tasks: an oracle gets everything right, a guesser its chance, and right is what greedy decoding would write."""
import itertools
import json
import re
import shutil

import numpy as np
import pytest
from helpers import call
from safetensors.numpy import load_file, save_file

from minillama.config import EngineConfig
from minillama.engine.numpy_engine import NumpyEngine
from minillama.errors import InputError
from minillama.generate import Sampling, generate
from minillama.report import score
from minillama.report.score import right_answers, score_tasks
from minillama.run.folder import load
from minillama.tasks import TASKS, Blank, draw, encode

pytestmark = pytest.mark.usefixtures("auto_is_numpy")
KEYS = {"accuracy", "low", "high", "chance", "right", "trials", "shots"}


class Fake:
    """An engine that gives every token of a row to `reply(row)`, a list with the next token at every place."""

    def __init__(self, vocab_size, reply):
        self.vocab_size, self.reply = vocab_size, reply

    def logits(self, tokens):
        logits = np.zeros((*tokens.shape, self.vocab_size), np.float32)
        for row, places in zip(tokens, logits):
            for place, id in zip(places, self.reply(row.tolist())):
                place[id] = 1
        return logits


@pytest.fixture
def trained(finished):
    return load(finished)


def encoded(name, tokenizer, count, shots=0):
    return [encode(*draw(name, 0, index, shots), tokenizer) for index in range(count)]


def knowing(table):
    """Reply with the rest of what begins so: ids by their beginning, less what padding adds."""
    longest = max(map(len, table))

    def reply(row):
        for length in range(min(longest, len(row)), 0, -1):
            if tuple(row[:length]) in table:
                return table[tuple(row[:length])]
        raise AssertionError("a row that nobody asked for")

    return reply


@pytest.mark.parametrize("name", TASKS)
def test_an_oracle_gets_everything_right(name, trained, monkeypatch):
    trials = encoded(name, trained.tokenizer, 40, TASKS[name].shots)
    oracle = Fake(trained.tokenizer.vocab_size, knowing({tuple(ids[:-1]): ids[1:] for ids, _ in trials}))
    monkeypatch.setattr(score, "make_engine", lambda *arguments, **options: oracle)
    one = score_tasks_of(trained, monkeypatch, [name], 40)["tasks"][name]
    assert (one["accuracy"], one["right"], one["trials"], one["shots"]) == (1, 40, 40, TASKS[name].shots)
    assert one["high"] == 1 and 0.9 < one["low"] < 1


def score_tasks_of(trained, monkeypatch, names, trials, shots=None):
    monkeypatch.setattr(score, "load", lambda path: trained)
    return score_tasks("run", names, trials, shots, 0, EngineConfig("numpy"))


@pytest.mark.parametrize("name", ["stories", "sums-1", "brackets"])
def test_a_guesser_gets_its_chance(name, trained, monkeypatch):
    """It answers with one of each option, in tokens of its own; right only if all of them are the answer's."""
    rng, table = np.random.default_rng(5), {}
    tokenizer = trained.tokenizer
    for index in range(500):
        (blank, *rest), before = draw(name, 0, index, TASKS[name].shots)
        ids, _ = encode((blank, *rest), before, tokenizer)
        guess = blank._replace(answer="".join(str(rng.choice(place)) for place in blank.options))
        table[tuple(ids[:-1])] = encode((guess,), before, tokenizer)[0][1:]
    guesser = Fake(tokenizer.vocab_size, knowing(table))
    monkeypatch.setattr(score, "make_engine", lambda *arguments, **options: guesser)
    one = score_tasks_of(trained, monkeypatch, [name], 500)["tasks"][name]
    assert one["low"] <= one["chance"] <= one["high"]
    assert 0 < one["right"] < 500


@pytest.mark.parametrize("name", ["copy", "sums-3"])
def test_one_wrong_token_of_an_answer_is_wrong_and_no_other_token_counts(name, trained):
    (ids, asked), = encoded(name, trained.tokenizer, 1)
    for place in range(1, len(ids)):
        reply = ids[1:]
        reply[place - 1] = ids[place] - 1
        engine = Fake(trained.tokenizer.vocab_size, lambda row, reply=reply: reply)
        assert right_answers(engine, [(ids, asked)]) == [not asked[place]]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_rows_of_a_batch_do_not_touch_each_other(batch_size, trained):
    """Of different lengths, and every second one is answered rightly."""
    trials = [trial for name in ("sums-1", "sums-3", "copy", "stories") for trial in encoded(name, trained.tokenizer, 5)]
    table = {tuple(ids[:-1]): ids[1:] if number % 2 else [0] * len(ids) for number, (ids, _) in enumerate(trials)}
    seen = []
    right = right_answers(Fake(trained.tokenizer.vocab_size, knowing(table)), trials, batch_size, seen.append)
    assert right == [bool(number % 2) for number in range(20)]
    assert sum(seen) == 20 and max(seen) == min(batch_size, 20)


def test_right_is_what_greedy_decoding_writes(trained):
    """A model with random weights: what `generate` writes after a prompt is right, and anything else is not."""
    engine = NumpyEngine(trained.config.model, params=trained.params, threads=1)
    for array in engine.params.values():
        if array.ndim > 1:
            array *= 4                                           # likeliest tokens that differ from place to place
    tokenizer, answers = trained.tokenizer, set()
    prompts = ("Ann has", "Tom", "the", "a red", "12 blue", "drums ,", "they play", "by", "river .", "kite and", "so", "has 1")
    for prompt, n in itertools.product(prompts, (1, 2, 3)):
        before = tokenizer.encode(prompt, bos=True)
        written = list(generate(engine, before, n, tokenizer.eos_id, Sampling(temperature=0)))
        answer = tokenizer.decode(before + written)[len(prompt):]
        if tokenizer.encode(prompt + answer, bos=True) != before + written or not answer.isascii():
            continue                                             # it writes this text in other tokens than the tokenizer does
        answers.add(answer)
        wrong = answer[:-1] + ("a" if answer[-1] != "a" else "b")
        trials = [encode((Blank(prompt, text, ()),), "", tokenizer) for text in (answer, wrong)]
        assert right_answers(engine, trials) == [True, False]
    assert len(answers) >= 5


def test_command(finished, capsys):
    status, out, _ = call(capsys, "eval", finished, "--tasks", "--trials", 10)
    assert status == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["task", *TASKS]
    assert re.fullmatch(r"stories +\d+\.\d%  [\d.]+ to [\d.]+% +50\.00% +10 +0  who has what, at the end of a built-in story", lines[4])


def test_json_and_seed(finished, capsys):
    command = ["eval", finished, "--tasks", "sums-1", "copy", "sums-1", "--trials", 7, "--json", "--seed"]
    status, out, _ = call(capsys, *command, 5)
    assert status == 0
    result = json.loads(out)
    assert result["seed"] == 5 and list(result["tasks"]) == ["sums-1", "copy"]
    for name, one in result["tasks"].items():
        assert one.keys() == KEYS
        assert one["trials"] == 7 and one["shots"] == TASKS[name].shots and one["accuracy"] == one["right"] / 7
        assert one["low"] <= one["accuracy"] <= one["high"]
    assert result["tasks"]["copy"]["chance"] == pytest.approx(1 / 512)
    assert call(capsys, *command, 5)[1] == out


def test_the_seed_and_the_trials_reach_the_questions(trained, monkeypatch):
    asked = []
    monkeypatch.setattr(score, "load", lambda path: trained)
    monkeypatch.setattr(score, "draw", lambda *arguments: asked.append(arguments) or draw(*arguments))
    score_tasks("run", ["copy"], 3, 2, 9, EngineConfig("numpy"))
    score_tasks("run", ["copy"], 1, None, 9, EngineConfig("numpy"))
    assert asked == [("copy", 9, 0, 2), ("copy", 9, 1, 2), ("copy", 9, 2, 2), ("copy", 9, 0, 5)]


@pytest.mark.parametrize("words, message", [
    (["--tasks", "coppy"],
     r"argument --tasks: invalid choice: 'coppy' \(choose from .*copy.*reverse.*\) \(python -m minillama eval --help\)"),
    (["--tasks", "--trials", "0"], r"--trials must be at least 1, got 0"),
    (["--tasks", "--trials", "100001"], r"--trials must be at most 100000, got 100001"),
    (["--tasks", "--shots", "-1"], r"--shots must be at least 0, got -1"),
    (["--tasks", "--seed", "-1"], r"--seed must be at least 0, got -1"),
    (["--tasks", "copy", "--shots", "40"],
     r"copy with 40 shots needs a context of \d{3,4} tokens, and this model has 256: fewer --shots"),
    (["--tasks", "--data", "x"], r"argument --data: not allowed with argument --tasks \(.*\)"),
    (["--trials", "5"], r"--trials 5 is for eval --tasks"), (["--shots", "5"], r"--shots 5 is for eval --tasks"),
    (["--seed", "5"], r"--seed 5 is for eval --tasks"),
])
def test_bad_input_is_one_sentence(words, message, finished, capsys):
    status, out, err = call(capsys, "eval", finished, *words)
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"error: {message}\n", err), err


def test_a_context_that_is_too_short_for_a_question(finished, tmp_path, capsys):
    run = tmp_path / "short"
    shutil.copytree(finished, run)
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace("max_seq_len = 256", "max_seq_len = 20"))
    for checkpoint in (run / "checkpoints").glob("step-*"):
        path = checkpoint / "config.json"
        path.write_text(path.read_text().replace('"max_position_embeddings": 256', '"max_position_embeddings": 20'))
    status, out, err = call(capsys, "eval", run, "--tasks", "stories")
    assert (status, out) == (2, "")
    assert re.fullmatch(r"error: stories with 0 shots needs a context of \d{2,3} tokens, and this model has 20: "
                        r"--tasks alone asks those that fit\n", err), err
    status, out, err = call(capsys, "eval", run, "--tasks")      # which are none
    assert (status, out) == (2, "")
    for path in (run / "config.toml", *(folder / "config.json" for folder in (run / "checkpoints").glob("step-*"))):
        path.write_text(path.read_text().replace("max_seq_len = 20", "max_seq_len = 150").replace('embeddings": 20', 'embeddings": 150'))
    status, out, err = call(capsys, "eval", run, "--tasks", "--trials", "2", "--json")
    assert status == 0
    assert json.loads(out)["tasks"].keys() == {name for name in TASKS if f"note: {name} with" not in err} != set()
    assert re.search(r"note: stories with 0 shots needs a context of \d{3} tokens, and this model has 150: it is not asked\n", err)



@pytest.mark.parametrize("broken", ["no run", "no tokenizer", "NaN"])
def test_a_broken_run_is_one_sentence(broken, finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    if broken == "no run":
        shutil.rmtree(run)
        message = rf"{run} does not exist"
    elif broken == "no tokenizer":
        (run / "tokenizer.model").unlink()
        message = rf".*{run}/tokenizer\.model.*"
    else:
        for path in run.glob("checkpoints/*/model.safetensors"):
            tensors = load_file(path)
            name = next(name for name in tensors if "norm" in name)
            save_file(tensors | {name: np.full_like(tensors[name], np.nan)}, path, metadata={"format": "pt"})
        message = r".*(not finite|NaN|checksum|damaged).*"
    status, out, err = call(capsys, "eval", run, "--tasks", "copy", "--trials", 3)
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"error: {message}\n", err), err


def test_logits_that_are_not_finite(trained):
    engine = Fake(trained.tokenizer.vocab_size, lambda row: [])
    engine.logits = lambda tokens: np.full((*tokens.shape, 9), np.nan)
    with pytest.raises(InputError, match=r"^the model's logits are not finite: its weights are broken, or its training has diverged$"):
        right_answers(engine, encoded("copy", trained.tokenizer, 2))
