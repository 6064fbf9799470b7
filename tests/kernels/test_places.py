"""Devices and dtypes: what an engine takes, and what is not here is one sentence."""
import importlib.util

import pytest
import torch

from kernels.engine import resolve
from minillama.errors import InputError

BAD_PLACES = {
    "an unknown device": (dict(device="gpu"), "device must be one of cpu, mps, cuda, cuda:1 ..., got 'gpu'"),
    "a device of another kind": (dict(device="meta"), "device must be one of .*, got 'meta'"),
    "a second processor": (dict(device="cpu:1"), "device must be one of .*, got 'cpu:1'"),
    "no CUDA": (dict(device="cuda"), "device 'cuda' is not here: PyTorch sees no CUDA GPU"),
    "no mps": (dict(device="mps"), "device 'mps' is not here: PyTorch sees no Apple GPU"),
    "an unknown dtype": (dict(dtype="int8"), "dtype must be one of float32, bfloat16, float16, got 'int8'"),
    "training in float16": (dict(dtype="float16", training=True), "dtype to train in must be float32 or bfloat16, got float16"),
    "Triton without CUDA": (dict(kernels="triton"), "engine triton needs a CUDA GPU, and PyTorch sees none: --engine torch runs on the "
                                                    "processor, and TRITON_INTERPRET=1 steps through the kernels there, very slowly"),
}


@pytest.mark.parametrize("case", BAD_PLACES)
def test_bad_places(case, no_gpu):
    options, message = BAD_PLACES[case]
    with pytest.raises(InputError, match=message):
        resolve(**options)


def test_places(no_gpu, monkeypatch):
    """What an engine takes where nothing was asked for: the first of CUDA, an Apple GPU and the processor that is here."""
    assert resolve() == (torch.device("cpu"), torch.float32)
    assert resolve(dtype="float16") == (torch.device("cpu"), torch.float16)
    assert resolve(dtype=torch.bfloat16) == (torch.device("cpu"), torch.bfloat16)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve() == (torch.device("mps"), torch.float32)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve("triton") == (torch.device("cpu"), torch.float32)
    with pytest.raises(InputError, match="dtype must be float32 in Triton's interpreter, got bfloat16"):
        resolve("triton", dtype="bfloat16")
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve() == resolve("triton") == (torch.device("cuda"), torch.bfloat16)
    assert resolve(device="cuda:1", dtype="float32") == (torch.device("cuda:1"), torch.float32)
    with pytest.raises(InputError, match=r"device 'cuda:7' is not here: PyTorch sees 2 CUDA GPU\(s\), and the last is cuda:1"):
        resolve(device="cuda:7")
    with pytest.raises(InputError, match="device of engine triton must be a CUDA GPU, got cpu"):
        resolve("triton", device="cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="engine triton needs the package triton, which is not installed here"):
        resolve("triton")
