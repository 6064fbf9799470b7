"""What single kernels must be for an H100 (sm_90), and attention for an A100 (sm_80), too: read from their machine code. What holds for
every kernel is in test_aot.py."""
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


def test_what_spills_in_a_loop_is_found(compiled):
    assert compiled["spilling", "spilling", False]["local"] > 0
