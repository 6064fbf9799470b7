"""Several processes train the run that one trains: losses, gradients, checkpoints; on gloo, interpreted kernels included."""
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import call
from ranks import Ranks, command, metrics

SHAPE = ["--dim", 16, "--n-layers", 2, "--n-heads", 2, "--seq-len", 16, "--max-seq-len", 256, "--batch-size", 4, "--grad-accum-steps", 2,
         "--steps", 20, "--warmup-steps", 3, "--lr", 3e-3, "--eval-every", 8, "--save-every", 5, "--vocab-size", 290, "--threads", 1, "--no-look"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory, text):
    """Documents of very different lengths, so that rows score different numbers of tokens."""
    words, path = Path(text).read_text().split(), tmp_path_factory.mktemp("texts") / "a.jsonl"
    rng = np.random.default_rng(0)
    with open(path, "w") as file:
        while words:
            n = int(rng.choice([1, 2, 200]))
            file.write(json.dumps({"text": " ".join(words[:n])}) + "\n")
            words = words[n:]
    return path


@pytest.fixture(scope="module")
def alone(texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "alone"
    from minillama.__main__ import main

    assert main(list(map(str, ["train", "--engine", "torch", "--device", "cpu", "--data", texts, "--out", out, *SHAPE]))) == 0
    return metrics(out)


def same_curve(out, alone, tolerance=1e-5):
    ours = metrics(out)
    assert [line.keys() for line in ours] == [line.keys() for line in alone]
    for line, other in zip(ours, alone):
        for key in line.keys() - {"tokens_per_s", "floor"}:
            assert abs(line[key] - other[key]) <= tolerance * abs(other[key]), (line["step"], key, line[key], other[key])


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("size", [2, 3])
def test_losses_are_those_of_one_process(parallel, size, texts, alone, tmp_path):
    """With 3 processes, the 8 rows of a step are 3, 3 and 2."""
    ranks = Ranks(tmp_path, size, command, "train", "--engine", "torch", "--device", "cpu", "--parallel", parallel, "--data", texts,
                  "--out", tmp_path / "run", *SHAPE)
    ended = ranks.wait()
    assert [one.status for one in ended] == [0] * size, ended
    assert f"{parallel} over {size} processes" in ended[0].out
    assert not any(one.out + one.err for one in ended[1:])
    same_curve(tmp_path / "run", alone)
