"""What the compiler makes of the kernels for an H100 (sm_90), without one: prefetch, instructions, registers. No time is measured here.

The counts are those of the Triton that requirements.txt pins. Fewer are welcome; 10 % more need a reason.
"""
import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT

REGISTERS, SHARED, MULTIPROCESSORS = 64 * 1024, 227 * 1024, 132  # of a multiprocessor; and how many there are
LATENCY = 25 * 1024  # bytes that a multiprocessor must have asked for: 3.35 TB/s / 132 during about 1 us


@pytest.fixture(scope="module")
def compiled():
    """(example, kernel, residual) -> what kernels/sass.py finds; compiled in one process, because this one may interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "tests/kernels/compiled_kernels.py"], cwd=ROOT, env=environment, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = map(json.loads, done.stdout.splitlines())
    return {(row["example"], row["kernel"].removesuffix("_kernel"), row["residual"]): row for row in rows}


@pytest.mark.parametrize("example, kernel, residual, waits, loops", [
    ("rmsnorm D=1024", "rmsnorm_backward", False, [3, 0], [195]),
    ("rmsnorm D=4096", "rmsnorm_backward", False, [3, 0], [286]),
    ("rmsnorm D=4096", "rmsnorm_backward", True, [4, 0], [333]),
    ("rmsnorm D=8192", "rmsnorm_backward", False, [3, 0], [284]),
    ("rmsnorm D=8192", "rmsnorm_backward", True, [4, 0], [325]),
    ("cross_entropy", "cross_entropy_forward", False, [], [155]),            # 16 logits per thread and iteration
    ("cross_entropy", "cross_entropy_one_pass", False, [2, 0], [830, 150]),  # 64; then the targets, a row per thread
    ("attention", "attention_forward", False, [2, 0, 2, 0], [523]),          # the diagonal is one tile, so no loop
])
def test_prefetch_and_instructions(compiled, example, kernel, residual, waits, loops):
    """A wait in a loop leaves copies under way (the one after it waits for all); loops have not grown; registers stay registers in them."""
    found = compiled[example, kernel, residual]
    assert found["waits"] == waits
    assert len(found["loops"]) == len(loops)
    assert all(now <= 1.1 * before for now, before in zip(found["loops"], loops)), found["loops"]
    assert found["local"] == 0
    assert found["shared"] <= SHARED


@pytest.mark.parametrize("kernel, waits", [("forward", 2), ("dq", 2), ("dkdv", 4)])
@pytest.mark.parametrize("shape", ["T=2048 Dh=128", "T=2047 Dh=128", "T=2048 Dh=64"])
def test_attention_prefetches_on_sm_80(compiled, shape, kernel, waits):
    """The loop over tiles on the diagonal and the one over the others leave copies under way; 99 KB is all that some of these GPUs have."""
    found = compiled[f"attention {shape} sm_80", f"attention_{kernel}", False]
    assert found["waits"] == [waits, 0, waits, 0]
    assert found["local"] == 0
    assert found["shared"] <= 99 * 1024


@pytest.mark.parametrize("D", [1024, 4096, 8192])
@pytest.mark.parametrize("residual", [False, True])
def test_rmsnorm_backward_hides_the_latency_of_memory(compiled, D, residual):
    """All programs are on the multiprocessors at a time, and the rows that each copies ahead are, together, what Little's law asks for."""
    found = compiled[f"rmsnorm D={D}", "rmsnorm_backward", residual]
    assert found["programs"] % MULTIPROCESSORS == 0
    programs = found["programs"] // MULTIPROCESSORS
    assert programs * found["threads"] * -(-found["registers"] // 8) * 8 <= REGISTERS  # registers are given in eights
    assert programs * (found["shared"] + 1024) <= SHARED + 1024                        # CUDA keeps 1 KB for itself per program
    assert programs * D * 2 * (3 if residual else 2) >= LATENCY


@pytest.mark.parametrize("residual", [False, True])
def test_rmsnorm_forward_asks_for_everything_before_its_first_barrier(compiled, residual):
    assert compiled["rmsnorm D=4096", "rmsnorm_forward", residual]["late"] == 0


def test_adamw_does_not_go_through_shared_memory(compiled):
    """With 8 numbers per thread instead of 4, the bfloat16 gradient or copy would have another layout than the float32 arrays."""
    found = compiled["adamw", "adamw", False]
    assert (found["shared"], found["stored"], found["local"]) == (0, 0, 0)
    assert found["instructions"] <= 1.1 * 152


def test_what_spills_in_a_loop_is_found(compiled):
    assert compiled["spilling", "spilling", False]["local"] > 0
