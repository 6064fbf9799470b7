"""The factory of engines: what `auto` takes, what each engine needs, and whether a driver has a GPU."""
import importlib.util
import sys

import pytest
import torch

from minillama import engine as engine_module
from minillama import machine
from minillama.engine import make_engine, resolve_engine
from minillama.errors import InputError


def test_unknown_engine(tiny):
    with pytest.raises(InputError, match="engine 'cuda' does not exist: choose one of auto, numpy"):
        make_engine("cuda", tiny)


def test_auto(no_gpu, monkeypatch):
    """The fastest there is; a driver alone is none."""
    monkeypatch.setattr(engine_module, "has_cuda", lambda: False)
    assert resolve_engine("auto") == "numpy"
    monkeypatch.setattr(engine_module, "has_cuda", lambda: True)
    assert resolve_engine("auto") == "numpy"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_engine("auto") == "triton"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert resolve_engine("auto") == "torch"


def test_without_pytorch(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "kernels.engine", raising=False)
    with pytest.raises(InputError, match="engine torch needs PyTorch, which is not installed here: --engine numpy does without it"):
        make_engine("torch", tiny)
    monkeypatch.setattr(engine_module, "has_cuda", lambda: True)
    assert resolve_engine("auto") == "numpy"


def test_numpy_takes_no_device(tiny):
    for flag, value in (("device", "cpu"), ("dtype", "float32")):
        with pytest.raises(InputError, match=f"--{flag} {value} is for the engine torch or triton, and the engine is numpy"):
            make_engine("numpy", tiny, **{flag: value})
    with pytest.raises(InputError, match="--attention flash is for the engine triton, and the engine is torch"):
        make_engine("torch", tiny, attention="flash")


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
