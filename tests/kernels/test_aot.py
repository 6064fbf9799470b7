"""Every kernel compiled for GPUs that are not here, and the checks of that shown to be able to fail."""
import json
import re
import subprocess
import sys
from importlib.metadata import version

import instruction_counts
import pytest
from helpers import ROOT

from kernels import predict

RECORDED = json.loads(instruction_counts.FILE.read_text())
PINNED = pytest.mark.skipif(version("triton") != RECORDED["triton"], reason=f"the counts are those of triton {RECORDED['triton']}")


def run(*arguments, **options):
    environment = {name: value for name, value in instruction_counts.os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def compiled():
    """What python -m kernels.aot says: its process, and its rows."""
    return instruction_counts.compile_all()


def test_every_kernel_compiles_without_a_fault(compiled):
    done, rows = compiled
    assert done.returncode == 0, [row for row in rows if row["faults"]] or done.stderr[-2000:]
    assert {row["target"] for row in rows} == {"sm_80", "sm_90", "gfx942"}
    found = {row["kernel"] for row in rows}
    sources = [path.read_text() for path in (ROOT / "kernels").glob("*.py")]
    written = {name for source in sources for name in re.findall(r"@triton\.jit.*\ndef (\w+_kernel)\(", source)}
    assert found == written


def grown(found, recorded):
    """What is worse than recorded, in sentences. Both: of instruction_counts.counts."""
    worse = [f"{name} must be among the recorded" for name in found.keys() - recorded.keys()]
    worse += [f"{name} must be compiled" for name in recorded.keys() - found.keys()]
    for name in found.keys() & recorded.keys():
        for now, before in zip(found[name], recorded[name], strict=True):
            if now[0] > 1.1 * before[0] or now[1] > 1.1 * before[1]:
                worse.append(f"{name} must have at most {before[:2]} instructions, all and hot, and 10 % more, got {now[:2]}")
            if now[2] < before[2]:
                worse.append(f"{name} must copy {before[2]} iterations ahead, got {now[2]}")
    return worse


@PINNED
def test_no_kernel_grows_by_a_tenth_or_loses_its_prefetch(compiled):
    """A change that is worth it: python tests/kernels/instruction_counts.py renews the counts."""
    assert grown(instruction_counts.counts(compiled[1]), RECORDED["counts"]) == []


def test_what_grows_is_found():
    before = {"a": [[100, 50, 1], [100, 50, 1]], "b": [[10, 10, 0]]}
    assert grown(before, before) == []
    assert grown({"a": [[110, 55, 2], [90, 40, 1]], "b": [[10, 10, 0]]}, before) == []
    for now, sentence in (
        ({"a": [[100, 50, 1], [111, 50, 1]], "b": [[10, 10, 0]]}, "a must have at most [100, 50] instructions, all and hot, and 10 % more"),
        ({"a": [[100, 56, 1], [100, 50, 1]], "b": [[10, 10, 0]]}, "got [100, 56]"),
        ({"a": [[100, 50, 1], [100, 50, 0]], "b": [[10, 10, 0]]}, "a must copy 1 iterations ahead, got 0"),
        ({"a": before["a"]}, "b must be compiled"),
        (before | {"c": [[1, 1, 0]]}, "c must be among the recorded"),
    ):
        assert [sentence in worse for worse in grown(now, before)] == [True]


@PINNED
def test_the_readme_shows_the_predictions(compiled):
    """What python -m kernels.aot --predict prints."""
    assert predict.table(row for row in compiled[1] if row["target"] == "sm_90") in (ROOT / "kernels" / "README.md").read_text()


def test_faults_are_found():
    done = run("tests/kernels/faulty_kernels.py", timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    faults = {row["kernel"]: " ".join(row["faults"]) for row in map(json.loads, done.stdout.splitlines())}
    for kernel, fault in (
        ("double_kernel", "computes in float64"),
        ("narrow_kernel", "32-bit offset"),
        ("narrow_rows_kernel", "32-bit offset"),
        ("narrow_elements_kernel", "32-bit offset"),
        ("hungry_kernel", "spills registers"),
        ("large_kernel", "bytes of shared memory, and sm_80 has"),
        ("vector_kernel", "without matrix instructions"),
    ):
        assert fault in faults[kernel], (kernel, faults[kernel])


def test_asking_for_the_interpreter_imports_nothing():
    done = run("-c", "import sys; from kernels.interpreter import interpreted; print(interpreted(), {'torch', 'triton'} & {*sys.modules})")
    assert done.stdout == "False set()\n", done.stderr


def test_bad_arguments():
    for arguments, sentence in (
        (["--targets", "sm_20"], "--targets must be some of sm_80,sm_90,gfx942, got 'sm_20'"),
        (["--only", "nothing"], "--only must be part of an example's name, got 'nothing': the examples are layer of nano,"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
    ):
        done = run("-m", "kernels.aot", *arguments)
        assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
