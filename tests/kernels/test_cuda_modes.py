"""The warnings that tests on CUDA ignore, without CUDA: PyTorch's own function where it is Python, a copy of its order where it is C++."""
import importlib
import sys
import warnings

import pytest
import torch
from cuda_modes import PROTOTYPE, quiet_inductor, waiting


@pytest.fixture
def mode(monkeypatch):
    """A made-up device's mode. As in torch/csrc/cuda/Module.cpp, it is set by the time the warning becomes an error."""
    state = {"mode": 0, "warning": f"{PROTOTYPE} and does not yet detect all synchronizing operations"}

    def change(mode):
        state["mode"] = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)
        if text := state.pop("warning", None):
            warnings.warn(text, UserWarning, stacklevel=2)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", change)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: state["mode"])
    return state


def test_the_mode_ends_with_its_block(mode):
    with waiting("error"):
        assert mode["mode"] == 2
    assert mode["mode"] == 0
    with pytest.raises(ZeroDivisionError), waiting("warn"):
        assert mode["mode"] == 1
        1 / 0  # noqa: B018
    assert mode["mode"] == 0


def test_only_that_warning_is_ignored(mode):
    mode["warning"] = "something else"
    with pytest.raises(UserWarning, match="something else"), waiting("error"):
        pass
    assert mode["mode"] == 0
    with pytest.raises(UserWarning, match="called a synchronizing CUDA operation"), waiting("warn"):
        warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)


@pytest.fixture
def tf32(monkeypatch):
    """Inductor's two functions that warn on a GPU that has TF32 and does not use it."""
    with warnings.catch_warnings(action="ignore"):               # of the import
        from torch._inductor import compile_fx
        from torch._inductor.fx_passes import fuse_attention
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (9, 0))
    return [module._warn_tf32_disabled.__wrapped__ for module in (compile_fx, fuse_attention)]  # without the cache: they warn once


def test_inductor_warns_of_tf32(tf32):
    for warn in tf32:
        with pytest.raises(UserWarning, match="TensorFloat32 tensor cores"):
            warn()


@quiet_inductor
def test_inductors_import_is_quiet(monkeypatch):
    """The import as the first compilation of a process does it."""
    monkeypatch.delitem(sys.modules, "torch.utils.mkldnn", raising=False)
    importlib.import_module("torch.utils.mkldnn")


@quiet_inductor
def test_inductors_warning_is_ignored_where_it_is_met(tf32):
    for warn in tf32:
        warn()
    with pytest.raises(UserWarning, match="another"):
        warnings.warn("another", UserWarning, stacklevel=1)


def test_the_tests_that_meet_it_ignore_it():
    import test_gpu

    assert quiet_inductor.mark in test_gpu.test_compiled_by_inductor_in_one_graph.pytestmark
