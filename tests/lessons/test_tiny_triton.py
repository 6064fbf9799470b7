"""Triton's language in NumPy: it shows the faults that Triton's interpreter hides; and lesson 15 runs where there is no Triton."""
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT

from lessons import case
from lessons.checks.gpu import launch_dweight, launch_rmsnorm
from lessons.tiny_triton import UNDEFINED, on_both, tl

INTERPRETED = importlib.util.find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") == "1"
triton = pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter")

NO_TRITON = """
import importlib.util, runpy, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("torch", "triton") else find(name, *rest)
sys.modules["torch"] = sys.modules["triton"] = None
runpy.run_path("lessons/src/15_gpu.py", run_name="__main__")
"""


def test_memory_is_one_line():
    """Neighbours, undefined lanes, memory that nobody wrote, and an address where nothing is."""
    a, b, column = np.arange(3.0), np.arange(10.0, 13.0), tl.arange(0, 4)
    a_ptr, b_ptr, out_ptr, n = tl.begin(0, 1, a, b, tl.empty(2), 7)
    assert n == 7
    assert tl.load(a_ptr + column).tolist() == [0, 1, 2, 10]
    assert tl.load(a_ptr + column, column < 3).tolist() == [0, 1, 2, UNDEFINED]
    assert tl.load(b_ptr + column, column < 3, other=-1.0).tolist() == [10, 11, 12, -1]
    assert np.isnan(tl.load(out_ptr))
    with pytest.raises(IndexError, match="illegal memory access"):
        tl.load(a_ptr + 1000)
    with pytest.raises(IndexError, match="illegal memory access"):
        tl.load(a_ptr + column - 1)


def test_programs_run_at_the_same_time():
    """A race loses additions, an atomic does not; of two that store to one place the first program comes last."""

    def add(sum_ptr):
        tl.store(sum_ptr, tl.load(sum_ptr) + 1 + tl.program_id(0))

    def atomic(sum_ptr):
        tl.atomic_add(sum_ptr, 1 + tl.program_id(0))

    for kernel, right in ((add, 1), (atomic, 10)):
        total = np.zeros(1)
        tl.launch(kernel, (4,), total)
        assert total == right


def test_float16_is_rounded():
    out = np.zeros(1, np.float16)
    tl.launch(lambda out_ptr: tl.store(out_ptr + tl.arange(0, 1), tl.full((1,), 1 / 3, tl.float32)), 1, out)
    assert out == np.float16(1 / 3)
    assert tl.sum(tl.full((4,), 0.1, tl.float16).to(tl.float32), 0).dtype == np.float64


@triton
@pytest.mark.parametrize("launcher", [launch_rmsnorm, launch_dweight])
def test_the_same_source_on_triton(launcher, capsys):
    on_both(launcher, case(f"15.{launcher.__name__}"))
    assert "the same kernel" in capsys.readouterr().out


def test_lesson_15_without_torch_and_triton():
    environment = os.environ | {"LESSONS_FAST": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", NO_TRITON], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torch and triton are not here" in done.stdout
    assert done.stdout.count("✓") > 15
