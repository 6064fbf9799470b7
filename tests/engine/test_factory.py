"""The factory of engines: what `auto` takes, what each engine needs, and whether a driver has a GPU."""
import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

from minillama import machine
from minillama.config import EngineConfig
from minillama.engine import factory
from minillama.engine.factory import make_engine, resolve_engine
from minillama.errors import InputError


def test_unknown_engine(tiny):
    with pytest.raises(InputError, match="engine must be one of auto, numpy, torch, triton, got 'cuda'"):
        make_engine(EngineConfig("cuda"), tiny)


def test_auto(no_gpu, monkeypatch):
    """The fastest there is; a driver alone is none."""
    monkeypatch.setattr(factory, "has_cuda", lambda: False)
    assert resolve_engine(EngineConfig()).name == "numpy"
    monkeypatch.setattr(factory, "has_cuda", lambda: True)
    assert resolve_engine(EngineConfig()).name == "numpy"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_engine(EngineConfig()).name == "triton"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert resolve_engine(EngineConfig()).name == "torch"


def test_without_pytorch(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "kernels.engine", raising=False)
    with pytest.raises(InputError, match="engine torch needs PyTorch, which is not installed here: --engine numpy does without it"):
        make_engine(EngineConfig("torch"), tiny)
    monkeypatch.setattr(factory, "has_cuda", lambda: True)
    assert resolve_engine(EngineConfig()).name == "numpy"


def test_numpy_takes_no_device(tiny):
    for flag, value in (("device", "cpu"), ("dtype", "float32")):
        with pytest.raises(InputError, match=f"--{flag} {value} is for the engine torch or triton, and the engine is numpy"):
            make_engine(EngineConfig("numpy", **{flag: value}), tiny)
    with pytest.raises(InputError, match="--attention flash is for the engine triton, and the engine is torch"):
        make_engine(EngineConfig("torch", attention="flash"), tiny)


def test_graphs_are_for_cuda(tiny, no_gpu):
    for name, where in (("numpy", "numpy"), ("torch", "torch on cpu")):
        with pytest.raises(InputError, match=f"--no-graphs is for the engines torch and triton on a CUDA GPU, and the engine is {where}$"):
            make_engine(EngineConfig(name, graphs=False), tiny)


def test_graphs_reach_the_engine(tiny, monkeypatch):
    """As on a CUDA GPU: what was asked for is handed on, and nothing where nothing was."""
    given = []
    engines = SimpleNamespace(resolve=lambda *asked: (torch.device("cuda"), None), TorchEngine=lambda *_, **options: given.append(options))
    monkeypatch.setattr(factory, "_torch_engine", lambda name: engines)
    for graphs in (None, False):
        make_engine(EngineConfig("torch", graphs=graphs), tiny)
    assert given == [{"kernels": "reference"}, {"kernels": "reference", "graphs": False}]


class Driver:
    """What ctypes would load; `status` is that of cuInit."""

    def __init__(self, gpus, status=0):
        self.gpus, self.status = gpus, status

    def cuInit(self, flags):
        return self.status

    def cuDeviceGetCount(self, pointer):
        pointer._obj.value = self.gpus
        return 0


@pytest.mark.parametrize("driver, expected", [
    (Driver(2), True), (Driver(0), False), (Driver(1, status=100), False), (object(), False), (None, False),
])
def test_has_cuda(driver, expected, monkeypatch):
    def load(name):
        if driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return driver

    monkeypatch.setattr(machine.ctypes, "CDLL", load)
    assert machine.has_cuda() is expected
