"""The instructions and the prefetch of every kernel for an H100, as the pinned Triton compiles it: instruction_counts.json.

Renew them after a change of a kernel that is worth its instructions: python tests/kernels/instruction_counts.py
"""
import json
import os
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")
ROOT = Path(__file__).parents[2]


def compile_all(*arguments):
    """Run python -m kernels.aot --json without the interpreter. Returns the process that has ended, and its rows."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-m", "kernels.aot", "--json", "--jobs", "2", *arguments], cwd=ROOT, env=environment,
                          capture_output=True, text=True, timeout=900)
    return done, [json.loads(line) for line in done.stdout.splitlines()]


def counts(rows):
    """{"example: kernel": [[instructions, of them in the hot part, iterations copied ahead], one for each launch]} of rows for sm_90."""
    found = {}
    for row in rows:
        if row["target"] == "sm_90":
            numbers = [row["instructions"], row["hot"]["instructions"], row["hot"]["ahead"]]
            found.setdefault(f"{row['example']}: {row['kernel']}", []).append(numbers)
    return found


if __name__ == "__main__":
    import triton

    found = counts(compile_all("--targets", "sm_90")[1])
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(numbers)}" for name, numbers in found.items())
    FILE.write_text(f'{{"triton": "{triton.__version__}", "counts": {{\n{lines}\n}}}}\n')
