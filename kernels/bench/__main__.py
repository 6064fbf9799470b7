"""The command line and the plan of the benchmark. Results are JSON lines; one that has no "ms" has an "error", which says why."""
import argparse
import datetime
import gc
import json
import math
import os
import sys
import time

import torch
import triton

from ..interpreter import interpreted
from . import peers, step, table
from .case import Bench, free
from .clock import CudaTimer, git_revision, gpu_state, measure_rates

KERNELS = (*peers.WORKLOADS, "step")


class Usage(Exception):
    """A flag whose value is not allowed, or that does not go with the others."""


def _listed(flag, text, allowed):
    chosen = [part.strip() for part in text.split(",")]
    for name in chosen:
        if name not in allowed:
            raise Usage(f"{flag} must be some of {','.join(allowed)}, got {name!r}")
    return chosen


def parse(argv):
    """The command line. Raises Usage."""
    class Parser(argparse.ArgumentParser):
        def error(self, message):
            raise Usage(message)

    parser = Parser(prog="python -m kernels.bench", description="Time every kernel beside its peers and its roofline, on a CUDA GPU.")
    parser.add_argument("--only", metavar="LIST", help=f"only these: some of {','.join(KERNELS)}; step: a whole training step")
    parser.add_argument("--peers", metavar="LIST", help="contenders beside ours (default: all)")
    parser.add_argument("--json", metavar="FILE", help="write JSON lines to FILE; --render finds files in kernels/results/")
    parser.add_argument("--minutes", type=float, default=6.0, metavar="N", help="start no new measurement after N minutes (default: 6)")
    parser.add_argument("--memory", action="store_true", help="only count the bytes kept for backward (needs no GPU)")
    parser.add_argument("--render", nargs="*", metavar="FILE", help="only print the table of these files (default: kernels/results/*)")
    parser.add_argument("--into", nargs="?", const=table.README, metavar="FILE",
                        help="with --render: write the table between the two markers of FILE (default: kernels/README.md)")
    arguments = parser.parse_args(argv)
    arguments.only = _listed("--only", arguments.only, KERNELS) if arguments.only is not None else KERNELS
    known = list(dict.fromkeys([*peers.PROVIDERS, *step.TRAINERS]))
    arguments.peers = ["ours", *_listed("--peers", arguments.peers, known)] if arguments.peers is not None else known
    if not (arguments.minutes > 0 and math.isfinite(arguments.minutes)):
        raise Usage(f"--minutes must be a positive number, got {arguments.minutes}")
    if arguments.into and arguments.render is None:
        raise Usage("--into needs --render")
    if not (arguments.memory or arguments.render is not None):
        if not torch.cuda.is_available():
            raise Usage("there is no CUDA GPU to measure on: --memory counts bytes, --render prints results")
        if interpreted():
            raise Usage("TRITON_INTERPRET must not be set, got 1: times of the interpreter mean nothing")
    return arguments


def plan(only, providers):
    """What to measure, the most valuable first: a list of (kernel, shape name), or of ("step", trainer)."""
    ops = [kernel for kernel in peers.WORKLOADS if kernel != "attention"]
    order = [("attention", "T=2k"), *((kernel, "reference") for kernel in ops), *(("step", trainer) for trainer in step.TRAINERS)]
    order += [("attention", f"T={T}k") for T in (8, 4, 16, 1)]
    order += [(kernel, shape) for shape in ("1.3B", "small", "odd") for kernel in ops
              if peers.SHAPES[shape].keys() >= set(peers.WORKLOADS[kernel].letters)]
    return [(kernel, what) for kernel, what in order if kernel in only and (kernel != "step" or what in providers)]


def row(record):
    """A line of the results for people to read."""
    what = " ".join(f"{record.get(name) or '':<{width}}" for name, width in
                    (("kernel", 21), ("shape_name", 10), ("direction", 17), ("mode", 6), ("provider", 18)))
    if "error" in record:
        return f"{what} {'absent' if record['absent'] else 'FAILED'}: {record['error']}"
    cells = [form.format(record[name]) for name, form in (
        ("roofline_pct", "{:4.0f}% of roofline"), ("ratio", "{:5.2f} x ours"), ("peak_mb", "{:8.0f} MiB"),
        ("tokens_per_s", "{:8.0f} tokens/s")) if record.get(name) is not None]
    return f"{what} {record['ms']['p50']:9.4f} ms  {'  '.join(cells)}"


def measure(arguments, output):
    """Run the plan, and write a line to `output` as soon as it is known. Returns the exit status: 1 if one of ours failed."""
    started, faults = time.monotonic(), 0
    common = {"git": git_revision(), "torch": torch.__version__, "triton": triton.__version__, "gpu": torch.cuda.get_device_name(0)}

    def write(record):
        nonlocal faults
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        print(json.dumps({"time": now} | common | record), file=output, flush=True)
        if record["kernel"] != "machine":
            faults += record["provider"] == "ours" and "error" in record
            print(row(record), flush=True)

    def train(provider):
        record = {"kernel": "step", "shape_name": "1.3B", "provider": provider}
        if found := bench.attempt(record, lambda: step.measure(provider, torch.device("cuda"), gemm)):
            write(record | found)

    timer = CudaTimer()
    with torch.cuda.stream(timer.stream):
        copy, gemm = measure_rates(timer, step.MODEL)
        write({"kernel": "machine", "state": gpu_state(), "copy_tbps": copy / 1e12, "gemm_tflops": gemm / 1e12})
        print(f"{common['gpu']}: copy {copy / 1e12:.2f} TB/s, the 1.3B model's products {gemm / 1e12:.0f} TFLOP/s")
        bench = Bench(write, timer, (copy, gemm), torch.cuda.get_device_properties(0).L2_cache_size)
        free()
        gc.freeze()                                              # every capture collects garbage: skip the objects that stay anyway
        work = plan(arguments.only, arguments.peers)
        for number, (kernel, what) in enumerate(work):
            if time.monotonic() - started > 60 * arguments.minutes:
                print(f"stopped after {arguments.minutes:g} minutes, before {kernel} at {what}: {number} of {len(work)} done",
                      file=sys.stderr)
                break
            if kernel == "step":
                train(what)
            else:
                bench.kernel(kernel, what, arguments.peers)
            free()
    return 1 if faults else 0


def main(argv=None):
    """The command. Returns the exit status."""
    try:
        arguments = parse(argv)
        if arguments.render is not None:
            text = table.render(table.read(arguments.render))
            if arguments.into:
                table.into(arguments.into, text)
            else:
                print(text, end="")
            return 0
        if arguments.memory:
            from .memory import rows

            print(*rows(), sep="\n")
            return 0
        with open(arguments.json or os.devnull, "x" if arguments.json else "w") as output:
            return measure(arguments, output)
    except FileExistsError:
        print(f"error: --json must name a new file, got {arguments.json}, which exists", file=sys.stderr)
    except (Usage, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
