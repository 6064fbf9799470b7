"""For the tests of kernels/: without triton, those of PyTorch alone; with CUDA, every kernel's on the GPU."""
import importlib.util
import json
import random
from pathlib import Path

import pytest
import torch
from helpers import metrics

from minillama.__main__ import main

PYTORCH = ("test_reference", "test_model", "test_engine", "test_engine_cli", "test_places", "test_fsdp", "test_gpu",
           "test_parallel", "test_world", "test_torchrun", "test_scale_memory")       # not of one kernel
ELSEWHERE = ("test_bugs", "test_aot", "test_compiled", "test_predict", "test_graph")

if importlib.util.find_spec("triton") is None:                   # it exists for Linux alone
    collect_ignore = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.stem not in PYTORCH]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """`pytest -m gpu` takes every kernel's tests, which use CUDA where it is there. Not the planted bugs, the compiling for other GPUs
    and the fake captures, which show as much without one."""
    for item in items:
        if torch.cuda.is_available() and item.path.parent.name == "kernels" and item.path.stem not in (*PYTORCH, *ELSEWHERE):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def documents(tmp_path_factory):
    """Documents of very different lengths, so that rows of a batch score different numbers of tokens."""
    rng, path = random.Random(0), tmp_path_factory.mktemp("documents") / "a.jsonl"
    words = ("Ann", "has", "a", "red", "kite", "and", "Tom", "has", "12", "blue", "drums", ",", "so", "they", "play", "by", "the", "river")
    lengths = [rng.choice((1, 2, 200)) for _ in range(90)]
    path.write_text("".join(json.dumps({"text": " ".join(rng.choices(words, k=length))}) + "\n" for length in lengths))
    return path


@pytest.fixture(scope="session")
def alone(documents, tmp_path_factory):
    """metrics.jsonl of the training that several processes repeat, by one."""
    from ranks import SHAPE  # here: where no process can be forked it skips

    out = tmp_path_factory.mktemp("runs") / "alone"
    assert main(list(map(str, ["train", "--engine", "torch", "--device", "cpu", "--data", documents, "--out", out, *SHAPE]))) == 0
    return metrics(out)
