"""The command line with both engines: the same training, resuming on the other, and flags that do not fit."""
import json
import re
import shutil
import tomllib

import pytest
from helpers import SMALL, call
from tolerances import INTERCHANGE

TORCH = ["--engine", "torch", "--device", "cpu"]
SHORT = [*SMALL, "--steps", "8", "--save-every", "4"]


@pytest.fixture(scope="module")
def runs(text, tmp_path_factory):
    """The same training on both engines."""
    from minillama.__main__ import main

    folder = tmp_path_factory.mktemp("both")
    for name, flags in (("numpy", ["--engine", "numpy"]), ("torch", TORCH)):
        assert main(["train", "--data", text, "--out", str(folder / name), *SHORT, *flags]) == 0
    return folder


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_train(runs):
    assert losses(runs / "torch") == pytest.approx(losses(runs / "numpy"), abs=INTERCHANGE)
    assert (runs / "torch" / "config.toml").read_text() == (runs / "numpy" / "config.toml").read_text()  # the engine is no part of a run


@pytest.mark.parametrize("first, second", [("numpy", TORCH), ("torch", ["--engine", "numpy"])])
def test_resume_on_another_engine(first, second, runs, text, tmp_path, capsys):
    out = shutil.copytree(runs / first, tmp_path / "run")
    shutil.rmtree(out / "checkpoints" / "step-000008")
    status, said, _ = call(capsys, "train", "--resume", "--out", out, *second)
    assert status == 0
    assert "continuing after step 4" in said
    assert losses(out) == pytest.approx(losses(runs / "numpy"), abs=INTERCHANGE)


def test_the_run_is_introduced_with_its_engine(text, tmp_path, capsys):
    for name, flags, about in (("a", ["--engine", "numpy"], "numpy, 2 threads, batches in 2 splits"),
                               ("b", [*TORCH, "--dtype", "bfloat16"], "torch on cpu (2 threads), bfloat16")):
        said = call(capsys, "train", "--data", text, "--out", tmp_path / name, *SMALL, *flags, "--steps", "1")[1]
        assert f"context 256; {about}\n" in said


def test_nothing_is_measured_for_other_engines(text, tmp_path, capsys):
    settings = SMALL[:-2]                                        # without --threads
    said = call(capsys, "train", "--data", text, "--out", tmp_path / "a", *settings, *TORCH, "--steps", "1")[1]
    assert "a step (--threads" not in said
    config = tomllib.loads((tmp_path / "a" / "config.toml").read_text())
    assert config["batch_splits"] == config["threads"]


def test_generate_and_eval(runs, capsys, no_gpu):
    texts = {call(capsys, "generate", runs / "numpy", "-p", "Ann", "-n", 20, "--temperature", 0, "--engine", engine)[1]
             for engine in ("numpy", "torch")}
    assert len(texts) == 1
    scores = [json.loads(call(capsys, "eval", runs / "numpy", "--json", "--engine", engine)[1])["loss"] for engine in ("numpy", "torch")]
    assert scores[1] == pytest.approx(scores[0], rel=INTERCHANGE)


BAD_FLAGS = {
    "an unknown engine": (["--engine", "jax"], r"argument --engine: invalid choice: 'jax'"),
    "an unknown device": (["--engine", "torch", "--device", "gpu"], r"device must be one of .*, got 'gpu'"),
    "no CUDA": (["--engine", "torch", "--device", "cuda"], r"device 'cuda' is not here: PyTorch sees no CUDA GPU"),
    "no mps": (["--engine", "torch", "--device", "mps"], r"device 'mps' is not here"),
    "float16": (["--engine", "torch", "--dtype", "float16"], r"argument --dtype: invalid choice: 'float16'"),
    "triton": (["--engine", "triton"], r"engine triton needs a CUDA GPU, and PyTorch sees none: .*"),
    "a device for numpy": (["--engine", "numpy", "--device", "cpu"], r"--device cpu is for the engine torch or triton, .* is numpy"),
    "a dtype for numpy": (["--engine", "numpy", "--dtype", "bfloat16"], r"--dtype bfloat16 is for the engine torch or triton"),
    "attention for torch": (["--engine", "torch", "--attention", "cudnn"], r"--attention cudnn is for the engine triton, .* is torch"),
    "graphs for numpy": (["--engine", "numpy", "--no-graphs"], r"--no-graphs is for the engines torch and triton on a CUDA GPU, .* numpy"),
    "graphs without CUDA": ([*TORCH, "--no-graphs"], r"--no-graphs is for the engines torch and triton on a CUDA GPU, .* torch on cpu"),
}


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flags(case, text, tmp_path, capsys, no_gpu):
    arguments, message = BAD_FLAGS[case]
    status, _, err = call(capsys, "train", "--data", text, "--out", tmp_path / "run", *SMALL, *arguments)
    assert status == 2
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", err), err
    assert not any(tmp_path.iterdir())
