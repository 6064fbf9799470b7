"""Shared by all tests: one BLAS thread, so that results do not depend on the machine's cores; without CUDA, interpreted kernels."""
import os
import random
import sys

from minillama import machine

machine.prepare()

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

pytest.register_assert_rewrite("helpers")  # what it asserts is shown as in a test

from helpers import SMALL, run  # noqa: E402

from minillama.config import ModelConfig  # noqa: E402

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """`pytest -m gpu` is all that needs a GPU: the tests marked so, here skipped without one, and those that kernels/conftest.py marks."""
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread():
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session", autouse=True)
def no_tensorboard():
    """What a run leaves is the same whether TensorBoard is installed or not; its own test brings a stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorboard.summary", None)
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def tiny():
    """A model small enough to check entry by entry: sizes without common factors, T below head_dim * n_heads, 2 layers."""
    return ModelConfig(dim=12, n_layers=2, n_heads=3, vocab_size=11, multiple_of=5, max_seq_len=16, norm_eps=1e-2)


@pytest.fixture
def auto_is_numpy(monkeypatch):
    """For tests of bits, and of the NumPy engine, on a machine with a GPU too."""
    monkeypatch.setattr("minillama.engine.factory.has_cuda", lambda: False)


@pytest.fixture
def no_gpu(monkeypatch):
    """As on a machine where PyTorch sees none."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file to train on."""
    sentence = "Ann has a red kite and Tom has 12 blue drums , so they play by the river ."
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text(" ".join(rng.choice(sentence.split()) for _ in range(6000)))
    return str(path)


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """A whole run trained on it; every file of tests has its own."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert run(out, *SMALL, text=text) == 0
    return out
