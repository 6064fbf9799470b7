"""Every command with good and with bad input: bad input is one sentence with the value and the limit, and exit status 2."""
import json
import re
import shutil
import subprocess
import sys

import pytest
from helpers import SMALL, call

from minillama.config import preset

pytestmark = pytest.mark.usefixtures("auto_is_numpy")


@pytest.mark.parametrize("command", ["", "train", "generate", "eval", "info", "gradcheck", "compare", "export", "import",
                                     "tokenizer", "tokenizer train", "tokenizer encode", "tokenizer decode"])
def test_help(command, capsys):
    status, out, _ = call(capsys, *command.split(), "--help")
    assert status == 0
    assert all(len(line) <= 130 for line in out.splitlines())
    if command == "train":
        for word in ("--data", "--resume", "--beta2", "--final-lr-fraction", "nano", "65B", "examples:", "LLaMA-1: 0.95"):
            assert word in out


def test_generate(finished, capsys):
    status, out, _ = call(capsys, "generate", finished, "--prompt", "Ann has", "-n", 20, "--seed", 3)
    assert status == 0
    assert out.startswith("Ann has")
    assert call(capsys, "generate", finished, "--prompt", "Ann has", "-n", 20, "--seed", 3)[1] == out
    assert call(capsys, "generate", finished, "--prompt", "Ann has", "-n", 20, "--seed", 4)[1] != out


def test_generation_says_why_it_ends(finished, capsys, monkeypatch):
    from minillama.text.tokenizer import Tokenizer

    assert call(capsys, "generate", finished, "-p", "Ann", "-n", 7)[2] == "(stopped after 7 tokens: -n 7)\n"
    err = call(capsys, "generate", finished, "-p", "Ann", "-n", 1000, "--seed", 1)[2]
    assert re.fullmatch(r"\(stopped after \d+ tokens: the end of (a document|the context of 256 tokens)\)\n", err)
    first = Tokenizer.load(finished / "tokenizer.model").encode(call(capsys, "generate", finished, "-n", 1, "--temperature", 0)[1])[-1]
    monkeypatch.setattr(Tokenizer, "eos_id", first)
    assert call(capsys, "generate", finished, "-n", 9, "--temperature", 0)[2] in (
        "(stopped after 0 tokens: the end of a document)\n", "(stopped after 9 tokens: -n 9)\n")
    monkeypatch.setattr(Tokenizer, "eos_id", -1)
    assert call(capsys, "generate", finished, "-n", 1000)[2] == "(stopped after 256 tokens: the end of the context of 256 tokens)\n"


def test_prompts_from_a_file_and_one_after_the_other(finished, tmp_path, capsys, monkeypatch):
    path = tmp_path / "prompt.txt"
    path.write_text("Ann has")
    alone = call(capsys, "generate", finished, "-p", "Ann has", "-n", 5)[1]
    assert call(capsys, "generate", finished, "--prompt-file", path, "-n", 5)[1] == alone
    lines = iter(["Ann has", "x" * 3000, "Ann has"])

    def typed(prompt):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    status, out, err = call(capsys, "generate", finished, "-i", "-n", 5)
    assert (status, out) == (0, alone * 2 + "\n")
    assert "error: the prompt " in err                           # one that is too long does not end the conversation
    path.write_bytes(b"caf\xe9")
    assert call(capsys, "generate", finished, "--prompt-file", path)[::2] == (2, f"error: {path} is not UTF-8: byte 0xe9 at offset 3\n")


def test_runs(finished, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "runs")[0] == 2
    (tmp_path / "runs").mkdir()
    assert "no runs here yet" in call(capsys, "runs")[1]
    shutil.copytree(finished, tmp_path / "runs" / "a")
    shutil.copytree(finished, tmp_path / "runs" / "broken")
    (tmp_path / "runs" / "broken" / "config.toml").write_text("[")
    status, out, _ = call(capsys, "runs", "--json")
    found = json.loads(out)
    last = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert status == 0
    assert found[0] == {"run": "runs/a", "preset": "nano", "parameters": 12656, "step": 12, "steps": 12, "val_loss": last["val_loss"],
                        "floor": None}
    assert "broken/config.toml is not TOML" in found[1]["error"]
    table = call(capsys, "runs")[1]
    assert "12 of 12" in table and f"{last['val_loss']:.4f}" in table


def test_without_a_command_the_commands_are_listed(capsys):
    status, out, err = call(capsys)
    assert (status, err) == (2, "")
    for word in ("train", "generate", "runs", "bench"):
        assert re.search(rf"^    {word}\b", out, re.MULTILINE), word


def test_a_text_without_data_is_hinted_at(text, capsys):
    assert f"a text is given with --data {text} (" in call(capsys, "train", text)[2]
    assert "--data" not in call(capsys, "train", "nowhere.txt")[2]


def test_help_shows_the_presets_values_and_credits_the_paper_where_it_gives_one(capsys):
    out = " ".join(call(capsys, "train", "--help")[1].split())
    for words in ("(nano: 0.002; LLaMA-1: 0.0003)", "optimiser steps (nano: 2400)", "(nano: 8; LLaMA-1: 256)", "the newest (nano: 2)"):
        assert words in out, words


def test_the_context_is_what_it_is_trained_at(text, tmp_path, capsys):
    """Unless it is asked for: a model writes noise beyond."""
    short = [word for word in SMALL if word not in ("--max-seq-len", "256")]
    assert call(capsys, "train", "--engine", "numpy", "--data", text, "--out", tmp_path / "a", *short, "--steps", "1")[0] == 0
    assert json.loads(call(capsys, "info", tmp_path / "a", "--json")[1])["max_seq_len"] == 16
    for name in ("nano", "micro", "small"):
        assert preset(name).model["max_seq_len"] == preset(name).train["seq_len"]


def test_greedy_generation_ignores_the_seed(finished, capsys):
    texts = {call(capsys, "generate", finished, "-p", "Ann", "-n", 20, "--temperature", 0, "--seed", seed)[1] for seed in range(3)}
    assert len(texts) == 1
    assert call(capsys, "generate", finished, "-p", "Ann", "-n", 20, "--top-k", 1)[1] in texts


def test_eval(finished, text, capsys):
    status, out, _ = call(capsys, "eval", finished, "--json")
    assert status == 0
    result = json.loads(out)
    assert result.keys() == {"loss", "bits_per_byte", "perplexity", "floor", "which_source", "sources"}
    assert result["sources"].keys() == {"a"}
    assert result["sources"]["a"].keys() == {"loss", "bits_per_byte", "floor", "share", "epochs", "which_source"}
    last = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert result["loss"] == pytest.approx(last["val_loss"], rel=1e-6)
    assert result["bits_per_byte"] == pytest.approx(last["val_bits_per_byte"], rel=1e-6)
    assert result["sources"]["a"]["share"] == 1
    assert result["sources"]["a"]["epochs"] > 0
    table = call(capsys, "eval", finished)[1]
    assert f"{result['loss']:.4f}" in table


def test_eval_of_other_text(finished, text, tmp_path, capsys):
    (tmp_path / "b.txt").write_text("Tom has a red kite . " * 20)
    (tmp_path / "c.jsonl").write_text('{"text": "Ann has"}\n{"text": "Tom"}\n')
    status, out, err = call(capsys, "eval", finished, "--data", tmp_path / "b.txt", "--data", f"{tmp_path}/c.jsonl=3", "--json")
    assert status == 0
    assert "note" not in err
    result = json.loads(out)["sources"]
    assert [result[name]["share"] for name in "bc"] == [0.25, 0.75]
    assert result["b"]["epochs"] is None
    assert "was trained on a part of this text" in call(capsys, "eval", finished, "--data", text)[2]


def test_eval_needs_no_padding_luck(finished, tmp_path, capsys):
    """The loss of documents of different lengths together is the token-weighted mean of each alone: padding scores nothing."""
    lines = ["Ann has a red kite and Tom", "so", "by the river , they play 12 12 12 and Tom has a blue drum ."]
    losses, tokens = [], []
    from minillama.run.folder import load_tokenizer

    for i, line in enumerate(lines):
        (tmp_path / f"{i}.jsonl").write_text(json.dumps({"text": line}) + "\n")
        losses.append(json.loads(call(capsys, "eval", finished, "--data", tmp_path / f"{i}.jsonl", "--json")[1])["loss"])
        tokens.append(len(load_tokenizer(finished).encode(line)) + 1)
    shares = [f"--data={tmp_path}/{i}.jsonl={n}" for i, n in enumerate(tokens)]
    together = json.loads(call(capsys, "eval", finished, *shares, "--json")[1])["loss"]
    assert together == pytest.approx(sum(x * n for x, n in zip(losses, tokens)) / sum(tokens), rel=1e-5)


@pytest.mark.parametrize("name", ["nano", "micro", "small", "7B", "13B", "33B", "65B"])
def test_info_of_presets(name, capsys):
    status, out, _ = call(capsys, "info", name, "--json")
    assert status == 0
    figures = json.loads(out)
    assert figures["memory_bytes"]["total"] > 16 * figures["parameters"]
    assert call(capsys, "info", name)[0] == 0
    if name == "65B":
        assert figures["parameters"] == 65_285_660_672
        assert figures["gpu_hours_paper"] == 1_022_362
        assert 0.45 < figures["mfu_paper"] < 0.52


def test_info_of_a_run(finished, capsys):
    status, out, _ = call(capsys, "info", finished, "--json")
    assert status == 0
    assert json.loads(out)["vocab_size"] == 290


def test_gradcheck(capsys):
    status, out, _ = call(capsys, "gradcheck", "--seed", 1)
    assert status == 0
    assert "dlayers.1.wk" in out
    assert "WRONG" not in out
    assert out.splitlines()[-1].startswith("all within")


def test_gradcheck_fails_loudly(capsys, monkeypatch):
    from minillama import nn

    monkeypatch.setattr(nn, "swiglu_backward", lambda dout, cache: (dout, dout))
    status, out, _ = call(capsys, "gradcheck")
    assert status == 1
    assert re.search(r"swiglu .*dgate.*WRONG", out)


def test_tokenizer(tmp_path, text, capsys):
    model = tmp_path / "t.model"
    assert call(capsys, "tokenizer", "train", text, "--vocab-size", 290, "--out", model)[0] == 0
    status, out, _ = call(capsys, "tokenizer", "encode", model, "Ann has 12 🙂")
    assert status == 0
    assert call(capsys, "tokenizer", "decode", model, *out.split())[1] == "Ann has 12 🙂\n"
    pieces = call(capsys, "tokenizer", "encode", model, "Ann 12", "--pieces")[1]
    assert [line.split()[1] for line in pieces.splitlines()][-2:] == ["1", "2"]
    chars = tmp_path / "c.model"
    assert call(capsys, "tokenizer", "train", text, "--vocab-size", "chars", "--out", chars)[0] == 0
    assert len(call(capsys, "tokenizer", "encode", chars, "Ann")[1].split()) == 4


def test_tokenizer_reads_standard_input(finished):
    command = [sys.executable, "-m", "minillama", "tokenizer"]
    ids = subprocess.run([*command, "encode", finished], input="Ann has\n", capture_output=True, text=True, check=True).stdout
    assert subprocess.run([*command, "decode", finished], input=ids, capture_output=True, text=True, check=True).stdout == "Ann has\n\n"
    broken = subprocess.run([*command, "encode", finished], input=b"ab\xff", capture_output=True)
    assert broken.returncode == 2
    assert broken.stderr == b"error: standard input is not UTF-8: byte 0xff at offset 2\n"


BAD_TRAINING = {
    "a missing file": (["--data", "none.txt"], r"cannot read none\.txt: No such file"),
    "a folder": (["--data", "."], r"cannot read \.: it is a folder, not a file"),
    "an empty file": (["--data", "empty.txt"], r"empty\.txt is empty \(0 bytes\)"),
    "a short file": (["--data", "short.txt", "--vocab-size", "chars"],
                     r"short\.txt must have at least 1 byte .*, got 4 bytes, of which .* 0\.1 holds out 0"),
    "less than a row": (["--data", "row.txt", "--vocab-size", "chars"], r"row must have at least 17 training tokens .*, got 14"),
    "not UTF-8": (["--data", "latin.txt"], r"latin\.txt is not UTF-8: byte 0xe9 at offset 3"),
    "not JSON": (["--data", "bad.jsonl"], r"bad\.jsonl line 2 must be a JSON object .*, got b'bad"),
    "a vocabulary too large": (["--vocab-size", "60000"], r"vocab_size must be at most \d+ for this text .*, got 60000"),
    "a vocabulary too small": (["--vocab-size", "100"], r"vocab_size must be at least \d+ for this text .*, got 100"),
    "a vocabulary of no number": (["--vocab-size", "many"], r"'many' is neither a whole number nor 'chars'"),
    "a vocabulary beyond uint16": (["--vocab-size", "70000"], r"vocab_size must be at most 65536, got 70000"),
    "weight 0": (["--data", "a.txt=0"], r"weight .* must be greater than 0 and at most 1e.09, got 0"),
    "weight -1": (["--data", "a.txt=-1"], r"weight .* must be greater than 0 and at most 1e.09, got -1"),
    "dim and heads": (["--n-heads", "3"], r"dim must be divisible by n_heads, got 16 and 3"),
    "odd head_dim": (["--dim", "18", "--n-heads", "6"], r"head_dim must be even .*, got dim 18 / n_heads 6 = 3"),
    "no layers": (["--n-layers", "0"], r"n_layers must be at least 1, got 0"),
    "no steps": (["--steps", "0"], r"steps must be at least 1, got 0"),
    "half a step": (["--steps", "1.5"], r"argument --steps: invalid int value: '1\.5'"),
    "lr 0": (["--lr", "0"], r"lr must be greater than 0\.0, got 0\.0"),
    "lr nan": (["--lr", "nan"], r"lr must be finite, got nan"),
    "beta2 1": (["--beta2", "1"], r"beta2 must be at most 0\.9999999, got 1\.0"),
    "val_fraction": (["--val-fraction", "0.9"], r"val_fraction must be at most 0\.5, got 0\.9"),
    "seq_len": (["--seq-len", "5000"], r"seq_len must be at most the model's context, max_seq_len 256, got 5000"),
    "threads": (["--threads", "0"], r"threads must be at least 1, got 0"),
    "an unknown preset": (["--preset", "pico"], r"argument --preset: invalid choice: 'pico'"),
    "an unknown flag": (["--dropout", "0.1"], r"unrecognized arguments: --dropout 0\.1"),
    "an unknown key": (["--config", "key.toml"], r"key\.toml \[train\] has a key 'learning_rate' that does not exist: known are .*lr"),
    "a wrong type": (["--config", "type.toml"], r"steps must be a whole number, got '100'"),
    "not TOML": (["--config", "a.txt"], r"a\.txt is not TOML"),
    "a missing config": (["--config", "none.toml"], r"cannot read none\.toml"),
}


@pytest.fixture
def folder(tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(text, tmp_path / "a.txt")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("ab c")
    (tmp_path / "row.txt").write_text("ab c" * 3)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 1000)
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\nbad\n')
    (tmp_path / "key.toml").write_text("[train]\nlearning_rate = 0.1\n")
    (tmp_path / "type.toml").write_text("[train]\nsteps = '100'\n")
    return tmp_path


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_bad_training_input(case, folder, capsys):
    arguments, message = BAD_TRAINING[case]
    data = [] if "--data" in arguments else ["--data", "a.txt"]
    small = [word for word in SMALL if word not in ("--vocab-size", "290")] if "--vocab-size" in arguments else SMALL
    if "type.toml" in arguments:
        small = []
    status, _, err = call(capsys, "train", "--out", "run", *small, *data, *arguments)
    assert status == 2
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", err), err
    assert not (folder / "run").exists()
    assert not [p for p in folder.iterdir() if "tmp" in p.name]


def test_the_largest_vocabulary_named_works(folder, capsys):
    error = call(capsys, "train", "--out", "run", "--data", "a.txt", *SMALL, "--vocab-size", "60000")[2]
    largest = int(re.search(r"at most (\d+)", error)[1])
    small = [*SMALL, "--steps", "1"]
    assert call(capsys, "train", "--out", "more", "--data", "a.txt", *small, "--vocab-size", largest + 1)[0] == 2
    assert call(capsys, "train", "--out", "run", "--data", "a.txt", *small, "--vocab-size", largest)[0] == 0


def test_folders_in_the_way(folder, finished, capsys):
    before = sorted(finished.rglob("*"))
    status, _, err = call(capsys, "train", "--out", finished, "--data", "a.txt")
    assert status == 2
    assert "already holds a run: --resume continues it" in err
    assert sorted(finished.rglob("*")) == before
    assert "is not a run" in call(capsys, "train", "--out", folder, "--data", "a.txt")[2]
    assert "is not a run" in call(capsys, "train", "--out", "a.txt", "--data", "a.txt")[2]


def test_resume_refuses_other_settings(finished, capsys):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    status, _, err = call(capsys, "train", "--resume", "--out", finished, "--lr", "0.1")
    assert status == 2
    assert err == f"error: --lr must be 0.003, with which {finished} was started, got 0.1\n"
    for flag, value in (("--dim", "32"), ("--threads", "1"), ("--vocab-size", "chars"), ("--data", "none.txt"), ("--preset", "micro")):
        status, _, err = call(capsys, "train", "--resume", "--out", finished, flag, value)
        assert status == 2
        assert err.startswith(f"error: {flag} must be ") and err.endswith(f"got {value}\n")
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


def test_resume_with_the_line_the_run_was_started_with(finished, text, capsys):
    """What people type: the same line again."""
    status, out, _ = call(capsys, "train", "--engine", "numpy", "--resume", "--out", finished, "--data", text, "--preset", "nano", *SMALL)
    assert status == 0
    assert "complete: all 12 steps are done" in out


def test_a_read_only_folder(folder, capsys, monkeypatch):
    from minillama.run import open

    monkeypatch.setattr(open.os, "access", lambda *a: False)    # as root every folder is writable
    status, _, err = call(capsys, "train", "--out", "sub/run", "--data", "a.txt")
    assert status == 2
    assert err == "error: sub: Permission denied\n"


BAD_USE = {
    "no run": (["generate", "nowhere"], r"nowhere does not exist"),
    "a long prompt": (["generate", "RUN", "--prompt", "Ann has a kite " * 200], r"the prompt must have at most 256 tokens .*, got \d+"),
    "temperature": (["generate", "RUN", "--temperature", "-1"], r"temperature must be at least 0, got -1\.0"),
    "temperature nan": (["generate", "RUN", "--temperature", "nan"], r"temperature must be finite, got nan"),
    "top-k": (["generate", "RUN", "--top-k", "-1"], r"top-k must be at least 0, got -1"),
    "top-p": (["generate", "RUN", "--top-p", "0"], r"top-p must be greater than 0, got 0\.0"),
    "n": (["generate", "RUN", "-n", "0"], r"-n must be at least 1, got 0"),
    "seed": (["generate", "RUN", "--seed", "-1"], r"seed must be at least 0, got -1"),
    "eval of nothing": (["eval", "RUN", "--data", "none.txt"], r"cannot read none\.txt"),
    "info of nothing": (["info", "8B"], r"8B is neither a run, nor a model, nor a preset"),
    "no model": (["tokenizer", "encode", "none.model", "a"], r"none\.model"),
    "a text for a model": (["tokenizer", "encode", "a.txt", "a"], r"a\.txt .*not a SentencePiece model"),
    "an id out of range": (["tokenizer", "decode", "RUN", "290"], r"a token id must be from 0 to 289 .*, got 290"),
    "a model in the way": (["tokenizer", "train", "a.txt", "--vocab-size", "290", "--out", "a.txt"], r"a\.txt already exists"),
    "an unknown command": (["chat"], r"invalid choice: 'chat'"),
}


@pytest.mark.parametrize("case", BAD_USE)
def test_bad_use(case, folder, finished, capsys):
    arguments, message = BAD_USE[case]
    status, out, err = call(capsys, *[finished if word == "RUN" else word for word in arguments])
    assert status == 2
    assert out == ""
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", err), err


def test_a_broken_checkpoint_is_named(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-000012" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    for command in (["generate", tmp_path / "run"], ["eval", tmp_path / "run"], ["train", "--resume", "--out", tmp_path / "run"]):
        status, _, err = call(capsys, *command)
        assert status == 2
        assert "step-000012/model.safetensors is not a complete safetensors file" in err
        assert err.count("\n") == 1


def test_errors_have_no_traceback():
    done = subprocess.run([sys.executable, "-m", "minillama", "generate", "nowhere"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: nowhere does not exist\n")


def test_ctrl_c_while_nothing_is_trained_yet(capsys, monkeypatch):
    from minillama.run import folder

    monkeypatch.setattr(folder, "load", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    assert call(capsys, "generate", "somewhere") == (130, "", "interrupted\n")
