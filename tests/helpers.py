"""What several files of tests need: one small training and its figures, a command called in this process, batches, parameters."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from minillama.__main__ import main
from minillama.config import TrainConfig
from minillama.nn import IGNORE, param_shapes

ROOT = Path(__file__).resolve().parent.parent

SMALL = ["--dim", "16", "--n-layers", "1", "--n-heads", "2", "--seq-len", "16", "--max-seq-len", "256", "--batch-size", "3",
         "--grad-accum-steps", "2", "--steps", "12", "--warmup-steps", "3", "--lr", "3e-3", "--eval-every", "4", "--save-every", "5",
         "--embedding-std", "0.02", "--init-std", "0.02", "--vocab-size", "290", "--threads", "2"]
RECIPE = TrainConfig(lr=1e-2, seed=3)


def call(capsys, *arguments):
    """(exit status, stdout, stderr) of one command."""
    capsys.readouterr()
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as exit:
        status = exit.code
    return status, *capsys.readouterr()


def run(out, *arguments, text=None):
    return main(["train", "--engine", "numpy", "--out", str(out), *(["--data", text] if text else []), *arguments])


def metrics(out):
    """Lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_s"} for line in lines]


def dead_process():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def batch(config, rows, T, seed=0, ignored=0.3):
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, config.vocab_size, (2, rows, T))
    targets[rng.random((rows, T)) < ignored * np.arange(rows)[:, None] / rows] = IGNORE  # later rows score fewer tokens
    return tokens, targets


def ignored(config, rows=2, T=5):
    """A batch that scores nothing."""
    tokens, _ = batch(config, rows, T)
    return tokens, np.full_like(tokens, IGNORE)


def split(arrays, *cuts):
    return list(zip(*(np.split(array, cuts) for array in arrays)))


def large_params(config):
    """Parameters large enough that every op changes the logits: of fresh ones, attention sees little but zeros."""
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape, np.float32) * np.float32(0.4) for name, shape in param_shapes(config).items()}


def assert_close(left, right, tolerance):
    assert left.keys() == right.keys()
    for name in left:
        assert np.abs(left[name] - right[name]).max() <= tolerance * np.abs(right[name]).max(), name
