"""For the tests of kernels/: without triton, those of PyTorch alone; with CUDA, every kernel's on the GPU."""
import importlib.util
from pathlib import Path

import pytest
import torch

PYTORCH = ("test_reference", "test_model", "test_engine", "test_engine_cli", "test_places", "test_fsdp", "test_gpu")  # not of one kernel
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
