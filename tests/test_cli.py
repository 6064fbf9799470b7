"""Every command with good and with bad input: bad input is one sentence with the value and the limit, and exit status 2."""
import json
import re
import shutil
import subprocess
import sys

import pytest
from test_train import SMALL, auto_is_numpy, finished, text  # noqa: F401 — the fixtures: a text and a run trained on it

from minillama.__main__ import main


def call(capsys, *arguments):
    """(exit status, stdout, stderr) of one command."""
    capsys.readouterr()
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as exit:
        status = exit.code
    return status, *capsys.readouterr()


@pytest.mark.parametrize("command", ["", "train", "generate", "eval", "info", "gradcheck", "compare", "export", "import",
                                     "tokenizer", "tokenizer train", "tokenizer encode", "tokenizer decode"])  # fmt: skip
def test_help(command, capsys):
    status, out, _ = call(capsys, *command.split(), "--help")
    assert status == 0
    assert all(len(line) <= 130 for line in out.splitlines())
    if command == "train":
        for word in ("--data", "--resume", "--beta2", "--final-lr-fraction", "nano", "65B", "examples:", "LLaMA-1: 0.95"):
            assert word in out


def test_generate(finished, capsys):  # noqa: F811
    status, out, _ = call(capsys, "generate", finished, "--prompt", "Ann has", "-n", 20, "--seed", 3)
    assert status == 0
    assert out.startswith("Ann has")
    assert call(capsys, "generate", finished, "--prompt", "Ann has", "-n", 20, "--seed", 3)[1] == out
    assert call(capsys, "generate", finished, "--prompt", "Ann has", "-n", 20, "--seed", 4)[1] != out


def test_greedy_generation_ignores_the_seed(finished, capsys):  # noqa: F811
    texts = {call(capsys, "generate", finished, "-p", "Ann", "-n", 20, "--temperature", 0, "--seed", seed)[1] for seed in range(3)}
    assert len(texts) == 1
    assert call(capsys, "generate", finished, "-p", "Ann", "-n", 20, "--top-k", 1)[1] in texts


def test_eval(finished, text, capsys):  # noqa: F811
    status, out, _ = call(capsys, "eval", finished, "--json")
    assert status == 0
    result = json.loads(out)
    assert result.keys() == {"loss", "bits_per_byte", "perplexity", "floor", "sources"}
    assert result["sources"].keys() == {"a"}
    assert result["sources"]["a"].keys() == {"loss", "bits_per_byte", "floor", "share", "epochs"}
    last = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert result["loss"] == pytest.approx(last["val_loss"], rel=1e-6)
    assert result["bits_per_byte"] == pytest.approx(last["val_bits_per_byte"], rel=1e-6)
    assert result["sources"]["a"]["share"] == 1
    assert result["sources"]["a"]["epochs"] > 0
    table = call(capsys, "eval", finished)[1]
    assert f"{result['loss']:.4f}" in table


def test_eval_of_other_text(finished, text, tmp_path, capsys):  # noqa: F811
    (tmp_path / "b.txt").write_text("Tom has a red kite . " * 20)
    (tmp_path / "c.jsonl").write_text('{"text": "Ann has"}\n{"text": "Tom"}\n')
    status, out, err = call(capsys, "eval", finished, "--data", tmp_path / "b.txt", "--data", f"{tmp_path}/c.jsonl=3", "--json")
    assert status == 0
    assert "note" not in err
    result = json.loads(out)["sources"]
    assert [result[name]["share"] for name in "bc"] == [0.25, 0.75]
    assert result["b"]["epochs"] is None
    assert "was trained on a part of this text" in call(capsys, "eval", finished, "--data", text)[2]


def test_eval_needs_no_padding_luck(finished, tmp_path, capsys):  # noqa: F811
    """The loss of documents of different lengths together is the token-weighted mean of each alone: padding scores nothing."""
    lines = ["Ann has a red kite and Tom", "so", "by the river , they play 12 12 12 and Tom has a blue drum ."]
    losses, tokens = [], []
    from minillama.run import load_tokenizer

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


def test_info_of_a_run(finished, capsys):  # noqa: F811
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


def test_tokenizer(tmp_path, text, capsys):  # noqa: F811
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


def test_tokenizer_reads_standard_input(finished):  # noqa: F811
    command = [sys.executable, "-m", "minillama", "tokenizer"]
    ids = subprocess.run([*command, "encode", finished], input="Ann has\n", capture_output=True, text=True, check=True).stdout
    assert subprocess.run([*command, "decode", finished], input=ids, capture_output=True, text=True, check=True).stdout == "Ann has\n\n"
    broken = subprocess.run([*command, "encode", finished], input=b"ab\xff", capture_output=True)
    assert broken.returncode == 2
    assert broken.stderr == b"error: standard input is not UTF-8: byte 0xff at offset 2\n"


BAD_TRAINING = {
    "a missing file": (["--data", "none.txt"], r"cannot read none\.txt: No such file"),
    "a folder": (["--data", "."], r"cannot read \.: Is a directory"),
    "an empty file": (["--data", "empty.txt"], r"empty\.txt is empty \(0 bytes\)"),
    "a short file": (["--data", "short.txt", "--vocab-size", "chars"], r"short is too short: \d+ training tokens, .* seq_len 16 needs 17"),
    "not UTF-8": (["--data", "latin.txt"], r"latin\.txt is not UTF-8: byte 0xe9 at offset 3"),
    "not JSON": (["--data", "bad.jsonl"], r"bad\.jsonl line 2 is not a JSON object"),
    "a vocabulary too large": (["--vocab-size", "60000"], r"60000 .* at most \d+"),
    "a vocabulary too small": (["--vocab-size", "100"], r"100 .* at least \d+"),
    "a vocabulary of no number": (["--vocab-size", "many"], r"'many' is neither a whole number nor 'chars'"),
    "a vocabulary beyond uint16": (["--vocab-size", "70000"], r"vocab_size is 70000, and must be at most 65536"),
    "weight 0": (["--data", "a.txt=0"], r"weight .* is 0, and must be greater than 0"),
    "weight -1": (["--data", "a.txt=-1"], r"weight .* is -1, and must be greater than 0"),
    "dim and heads": (["--n-heads", "3"], r"dim 16 is not divisible by n_heads 3"),
    "odd head_dim": (["--dim", "18", "--n-heads", "6"], r"head_dim 3 .* is odd"),
    "no layers": (["--n-layers", "0"], r"n_layers is 0, and must be at least 1"),
    "no steps": (["--steps", "0"], r"steps is 0, and must be at least 1"),
    "half a step": (["--steps", "1.5"], r"argument --steps: invalid int value: '1\.5'"),
    "lr 0": (["--lr", "0"], r"lr is 0\.0, and must be greater than 0"),
    "lr nan": (["--lr", "nan"], r"lr is nan, and must be finite"),
    "beta2 1": (["--beta2", "1"], r"beta2 is 1\.0, and must be at most"),
    "val_fraction": (["--val-fraction", "0.9"], r"val_fraction is 0\.9, and must be at most 0\.5"),
    "seq_len": (["--seq-len", "5000"], r"seq_len 5000 is longer than the context of the model: max_seq_len is 256"),
    "threads": (["--threads", "0"], r"threads is 0, and must be a whole number from 1"),
    "an unknown preset": (["--preset", "pico"], r"argument --preset: invalid choice: 'pico'"),
    "an unknown flag": (["--dropout", "0.1"], r"unrecognized arguments: --dropout 0\.1"),
    "an unknown key": (["--config", "key.toml"], r"key\.toml \[train\] has a key 'learning_rate' that does not exist: known are .*lr"),
    "a wrong type": (["--config", "type.toml"], r"steps is '100', and must be a whole number"),
    "not TOML": (["--config", "a.txt"], r"a\.txt is not TOML"),
    "a missing config": (["--config", "none.toml"], r"cannot read none\.toml"),
}


@pytest.fixture
def folder(tmp_path, text, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    shutil.copy(text, tmp_path / "a.txt")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("ab c")
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


def test_folders_in_the_way(folder, finished, capsys):  # noqa: F811
    before = sorted(finished.rglob("*"))
    status, _, err = call(capsys, "train", "--out", finished, "--data", "a.txt")
    assert status == 2
    assert "already holds a run: --resume continues it" in err
    assert sorted(finished.rglob("*")) == before
    assert "is not a run" in call(capsys, "train", "--out", folder, "--data", "a.txt")[2]
    assert "is not a run" in call(capsys, "train", "--out", "a.txt", "--data", "a.txt")[2]


def test_resume_refuses_other_settings(finished, capsys):  # noqa: F811
    status, _, err = call(capsys, "train", "--resume", "--out", finished, "--lr", "0.1")
    assert status == 2
    assert "--lr cannot be changed" in err


def test_a_read_only_folder(folder, capsys, monkeypatch):
    from minillama import train

    monkeypatch.setattr(train.os, "access", lambda *a: False)    # as root every folder is writable
    status, _, err = call(capsys, "train", "--out", "sub/run", "--data", "a.txt")
    assert status == 2
    assert err == "error: sub: Permission denied\n"


BAD_USE = {
    "no run": (["generate", "nowhere"], r"nowhere does not exist"),
    "a long prompt": (["generate", "RUN", "--prompt", "Ann has a kite " * 200], r"the prompt has \d+ tokens, and the context .* holds 256"),
    "temperature": (["generate", "RUN", "--temperature", "-1"], r"temperature is -1\.0, and must be at least 0"),
    "temperature nan": (["generate", "RUN", "--temperature", "nan"], r"temperature is nan"),
    "top-k": (["generate", "RUN", "--top-k", "-1"], r"top-k is -1, and must be at least 0"),
    "top-p": (["generate", "RUN", "--top-p", "0"], r"top-p is 0\.0, and must be greater than 0 and at most 1"),
    "n": (["generate", "RUN", "-n", "0"], r"-n is 0, and must be at least 1"),
    "seed": (["generate", "RUN", "--seed", "-1"], r"--seed is -1, and must be at least 0"),
    "eval of nothing": (["eval", "RUN", "--data", "none.txt"], r"cannot read none\.txt"),
    "info of nothing": (["info", "8B"], r"8B is neither a run, nor a model, nor a preset"),
    "no model": (["tokenizer", "encode", "none.model", "a"], r"none\.model"),
    "a text for a model": (["tokenizer", "encode", "a.txt", "a"], r"a\.txt .*not a SentencePiece model"),
    "an id out of range": (["tokenizer", "decode", "RUN", "290"], r"token id 290 .* 0 to 289"),
    "a model in the way": (["tokenizer", "train", "a.txt", "--vocab-size", "290", "--out", "a.txt"], r"a\.txt already exists"),
    "no command": ([], r"the following arguments are required: COMMAND"),
    "an unknown command": (["chat"], r"invalid choice: 'chat'"),
}


@pytest.mark.parametrize("case", BAD_USE)
def test_bad_use(case, folder, finished, capsys):  # noqa: F811
    arguments, message = BAD_USE[case]
    status, out, err = call(capsys, *[finished if word == "RUN" else word for word in arguments])
    assert status == 2
    assert out == ""
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", err), err


def test_a_broken_checkpoint_is_named(finished, tmp_path, capsys):  # noqa: F811
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
    from minillama import run

    monkeypatch.setattr(run, "load", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    assert call(capsys, "generate", "somewhere") == (130, "", "interrupted\n")
