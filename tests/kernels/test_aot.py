"""Every kernel compiled for GPUs that are not here, and the checks of that shown to be able to fail."""
import json
import os
import re
import subprocess
import sys

from helpers import ROOT

COMPILES = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}  # the compiler is not the interpreter


def run(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=COMPILES, capture_output=True, text=True, **options)


def test_every_kernel_compiles_without_a_fault():
    done = run("-m", "kernels.aot", "--json", "--jobs", "2", timeout=900)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, [row for row in rows if row["faults"]] or done.stderr[-2000:]
    assert {row["target"] for row in rows} == {"sm_80", "sm_90", "gfx942"}
    compiled = {row["kernel"] for row in rows}
    sources = [path.read_text() for path in (ROOT / "kernels").glob("*.py")]
    written = {name for source in sources for name in re.findall(r"@triton\.jit.*\ndef (\w+_kernel)\(", source)}
    assert compiled == written


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
