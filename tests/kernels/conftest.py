"""For the tests of kernels/: without triton, those of PyTorch alone; with CUDA, every kernel's on the GPU."""
import importlib.util
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
WITHOUT_KERNELS = ("test_engine", "test_fsdp", "test_gpu")  # collected without triton too; those of their tests that need it say so
ELSEWHERE = ("test_bugs", "test_aot")

if importlib.util.find_spec("triton") is None:                   # it exists for Linux alone
    collect_ignore = [path.name for path in HERE.glob("test_*.py") if path.stem not in WITHOUT_KERNELS]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """`pytest -m gpu` takes every kernel's tests, which use CUDA where it is there. Not the planted bugs and the compiling for other GPUs,
    which show as much without one."""
    for item in items:
        if torch.cuda.is_available() and item.path.parent == HERE and item.path.stem not in (*WITHOUT_KERNELS, *ELSEWHERE):
            item.add_marker(pytest.mark.gpu)
