"""Odd environments and odd files: what the system, the terminal or the disk may be like must not become a traceback."""
import os
import re
import subprocess
import sys
import tracemalloc

import pytest
from helpers import ROOT, SMALL, call

from minillama.text.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("auto_is_numpy")


def command(*arguments, **environment):
    return subprocess.run([sys.executable, "-m", "minillama", *map(str, arguments)], capture_output=True, cwd=ROOT,
                          env=os.environ | environment)


@pytest.mark.parametrize("environment", [
    dict(LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0", PYTHONIOENCODING="ascii"), dict(COLUMNS="abc"), dict(COLUMNS="-1"),
    dict(MPLBACKEND="junk"), dict(TERM="dumb", NO_COLOR="1"),
])
def test_training_in_an_odd_environment(environment, tmp_path):
    """The text has letters that ASCII lacks, and the samples have them, too."""
    text = tmp_path / "text.txt"
    text.write_text("größer 你好 🙂 Жук " * 400, encoding="utf-8")
    short = [*SMALL, "--steps", "2", "--vocab-size", "chars", "--engine", "numpy"]
    done = command("train", "--data", text, "--out", tmp_path / "run", *short, **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "run" / "loss.png").exists()
    done = command("generate", tmp_path / "run", "--prompt", "größer", "-n", 9, "--engine", "numpy", **environment)
    assert done.returncode == 0
    assert re.fullmatch(rb"\(stopped after \d tokens: [^\n]*\)\n", done.stderr), done.stderr
    assert command("train", "--help", **environment).returncode == 0


def sentence(capsys, *arguments):
    status, out, err = call(capsys, *arguments)
    assert status == 2
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    return err


def test_links_that_lead_in_a_circle(finished, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    before = sorted(os.listdir(tmp_path))
    assert "Too many levels of symbolic links" in sentence(capsys, "tokenizer", "encode", loop, "a")
    assert "already exists" in sentence(capsys, "tokenizer", "train", text, "--vocab-size", "300", "--out", loop)
    assert "already exists and is not a run" in sentence(capsys, "train", "--data", text, "--out", loop)
    assert "already exists" in sentence(capsys, "export", finished, "--to", "hf", "-o", loop)
    for arguments in (["generate", loop], ["eval", loop], ["info", loop], ["import", loop, "-o", "x"], ["train", "--data", loop],
                      ["train", "--config", loop], ["train", "--from", loop], ["compare", loop, loop]):
        sentence(capsys, *arguments)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "\udcff"])
def test_names_that_a_path_cannot_hold(name, finished, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (["train", "--data", text, *SMALL, "--steps", "1", "--out", name], ["generate", name], ["eval", name],
                      ["tokenizer", "encode", name, "a"], ["train", "--config", name], ["train", "--from", name], ["train", "--data", name],
                      ["info", name], ["export", finished, "--to", "hf", "-o", name], ["import", name, "-o", "x"], ["compare", name, name]):
        sentence(capsys, *arguments)
    assert not os.listdir(tmp_path)


def test_endless_and_missing_streams(finished, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", tmp_path / "pipe"):
        assert "it is a pipe or device, not a file" in sentence(capsys, "tokenizer", "encode", path, "a")
        assert "it is a pipe or device, not a file" in sentence(capsys, "train", "--data", path)
        assert "it is a pipe or device, not a file" in sentence(capsys, "train", "--config", path)
        assert "it is a pipe or device, not a file" in sentence(capsys, "eval", finished, "--data", path)


def test_an_endless_standard_input(finished, monkeypatch):
    with open("/dev/zero", "rb") as zero:
        script = "import minillama.__main__ as m, sys; m.MAX_STDIN = 10**6; sys.exit(m.main(sys.argv[1:]))"
        words = [sys.executable, "-c", script, "tokenizer", "encode", str(finished)]
        done = subprocess.run(words, stdin=zero, capture_output=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"error: standard input must have at most 1,000,000 bytes\n")


@pytest.mark.parametrize("content", ["\n\n", '{"text": ""}\n{"text": ""}\n'])
def test_texts_that_are_all_empty(content, finished, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(content)
    for arguments in (["eval", finished, "--data"], ["train", "--out", tmp_path / "run", "--data"]):
        assert "must hold at least one text that is not empty" in sentence(capsys, *arguments, tmp_path / "a.jsonl")
    assert os.listdir(tmp_path) == ["a.jsonl"] or sorted(os.listdir(tmp_path)) == [".cache", "a.jsonl"]


def test_a_bom_and_capital_letters_in_a_name(tmp_path, capsys):
    """What programs on Windows write."""
    from minillama.text.sources import parse_data

    (tmp_path / "a.JSONL").write_bytes(b'\xef\xbb\xbf{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbftext")
    texts = [["".join(chunks) for _, chunks, _ in source.held_out()] for source in parse_data([f"{tmp_path}/a.JSONL", f"{tmp_path}/b.txt"])]
    assert texts == [["one", "two"], ["text"]]


def test_one_long_line_of_a_letter_is_tokenised_in_bounded_memory(text):
    """No place in it is one where no merge reaches across; it is cut all the same, and nothing is lost."""
    tokenizer = Tokenizer.train(["a" * 50 + " aa aaaa b"] * 100, 270)
    assert tokenizer._joined & {"aa"}
    line = "a" * 2_500_000
    tracemalloc.start()
    ids = list(tokenizer.encode_chunks(line[start:start + 2**20] for start in range(0, len(line), 2**20)))
    assert tracemalloc.get_traced_memory()[1] < 120_000_000
    tracemalloc.stop()
    assert len(ids) == 3
    assert "".join(tokenizer.decode(chunk) for chunk in ids).replace("\n", "") == line


def test_a_model_is_not_exported_among_a_runs_checkpoints(finished, capsys):
    before = sorted(finished.rglob("*"))
    for to, name in (("hf", "step-000099"), ("gguf", "nano.gguf")):
        error = sentence(capsys, "export", finished, "--to", to, "-o", finished / "checkpoints" / name)
        assert "lies among the checkpoints of a run" in error
    assert sorted(finished.rglob("*")) == before


@pytest.mark.parametrize("arguments", [
    ["compare", "RUN", "RUN", "--out", "nowhere/c.png"], ["compare", "RUN", "RUN", "--out", "/dev/full/c.png"],
    ["train", "--data", "TEXT", *SMALL, "--out", "file/run"],
])
def test_a_command_that_fails_leaves_no_temporary_file(arguments, finished, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    sentence(capsys, *[{"RUN": finished, "TEXT": text}.get(word, word) for word in arguments])
    assert os.listdir(tmp_path) == ["file"]
