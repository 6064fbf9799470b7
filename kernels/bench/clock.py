"""Measures times, memory and rates of a GPU, and reads its state. Nothing here changes the settings of the GPU."""
import importlib
import math
import statistics
import subprocess
import time
from collections import deque
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch

from .. import roofline
from . import peers


class CudaTimer:
    """Times on the current stream, in ms."""

    captures = True

    def __init__(self):
        self.stream = torch.cuda.Stream()                        # the default stream cannot be captured
        self.failed = []                                         # graphs: the allocator may ask one still whether it captures

    def session(self):
        return torch.cuda.stream(self.stream)

    def synchronize(self):
        torch.cuda.synchronize()

    def capture(self, calls, times):
        """A function that replays `times` calls, cycling through `calls`. What a call returns is kept until the same call comes
        again, so that outputs rotate too."""
        graph, alive = torch.cuda.CUDAGraph(), deque(maxlen=len(calls))
        self.failed.append(graph)
        with torch.cuda.graph(graph, stream=self.stream):
            for i in range(times):
                alive.append(calls[i % len(calls)]())
        self.failed.pop()
        return graph.replay

    def queued(self, runs):
        """Times of runs that are queued without a pause, so that the GPU never waits for the host; a first, untimed run hides the start."""
        marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in runs]
        runs[0]()
        for run, (start, end) in zip(runs, marks):
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in marks]

    def alone(self, runs):
        """Times of runs that each start on an idle GPU."""
        times = []
        for run in runs:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        return times

    def peak_mb(self, run):
        """MiB that one run needs in addition to what is allocated before it."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        torch.cuda.synchronize()
        del result
        return (torch.cuda.max_memory_allocated() - before) / 2**20


class HostTimer:
    """The same on the processor's clock, for --smoke."""

    captures = False

    def session(self):
        return nullcontext()

    def synchronize(self):
        pass

    def alone(self, runs):
        times = []
        for run in runs:
            started = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - started))
        return times

    def peak_mb(self, run):
        run()


def compete(runs, rounds, clock):
    """name -> list of ms, one per round. runs: name -> function of the round's number; clock: CudaTimer.queued or .alone."""
    times = {name: [] for name in runs}
    for number in range(rounds):
        for name, ms in zip(runs, clock([partial(run, number) for run in runs.values()])):
            times[name].append(ms)
    return times


def percentiles(times):
    """{"p20", "p50", "p80"} of a list."""
    ordered = sorted(times)
    pick = {part: ordered[round((len(ordered) - 1) * part / 100)] for part in (20, 80)}
    return {"p20": pick[20], "p50": statistics.median(ordered), "p80": pick[80]}


def paired_ratio(theirs, ours):
    """Median of their time divided by ours in the same round: above 1, ours is faster."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


SMI = {"name": "name", "driver": "driver_version", "sm_mhz": "clocks.sm", "mem_mhz": "clocks.mem", "power_w": "power.draw",
       "power_limit_w": "power.limit", "temperature_c": "temperature.gpu"}


def gpu_state():
    """The state of the GPU as nvidia-smi reports it: dict with the keys of SMI, None for what is not reported."""
    nothing = dict.fromkeys(SMI)
    command = ["nvidia-smi", f"--query-gpu={','.join(SMI.values())}", "--format=csv,noheader,nounits"]
    uuid = getattr(torch.cuda.get_device_properties(0), "uuid", None) if torch.cuda.is_available() else None
    named = [] if uuid is None else [[*command, "-i", f"GPU-{str(uuid).removeprefix('GPU-')}"]]
    for attempt in [*named, command]:                            # by its id: nvidia-smi also counts GPUs that are hidden from this process
        try:
            answer = subprocess.run(attempt, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0]
        except (OSError, subprocess.SubprocessError, IndexError):
            continue
        return nothing | dict(zip(SMI, (_value(part.strip()) for part in answer.split(","))))
    return nothing


def _value(text):
    try:
        number = float(text)
    except ValueError:
        return None if text.startswith("[") or not text else text
    return number if math.isfinite(number) else None


_last = {"clocks": None, "at": -math.inf}


def clocks(age=0.0):
    """The part of gpu_state that changes (clocks, power, temperature), at most `age` seconds old: asking takes 0.1 s or more."""
    if time.monotonic() - _last["at"] > age:
        _last.update(clocks={name: value for name, value in gpu_state().items() if name not in ("name", "driver")}, at=time.monotonic())
    return _last["clocks"]


def version(package):
    try:
        return importlib.import_module(package).__version__
    except ImportError:
        return None


def git_revision():
    """Git revision of the source, with "+" if it was changed; None outside of a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def measure_rates(timer, config, rounds=20):
    """Rates of this GPU on random data (on zeros it would be faster).

    Returns:
        dict: copy, triad (bytes/s, read and written); gemm (FLOP/s over all matrix products of a model of this ModelConfig, forward
        and backward, at 16384 tokens), square (of 8192 x 8192 matrices), gemms (a dict for each product)
    """
    def seconds(run):
        run()
        return statistics.median(timer.queued([run] * rounds)) / 1e3

    draw = peers.Draw("cuda", torch.bfloat16)

    def copy():
        source = draw.normal(10**9)                              # 2 GB
        target = torch.empty_like(source)
        return 4e9 / seconds(lambda: target.copy_(source))

    def triad():
        a, b, c = (draw.normal(5 * 10**8, dtype=torch.float32) for _ in range(3))  # 2 GB each
        return 6e9 / seconds(lambda: torch.add(b, c, alpha=0.5, out=a))

    def products(M, K, N):
        x, weight, dout = draw.normal(M, K), draw.normal(N, K), draw.normal(M, N)
        three = {"x w^T": lambda: x @ weight.t(), "dout w": lambda: dout @ weight, "dout^T x": lambda: dout.t() @ x}
        return {product: seconds(run) for product, run in three.items()}

    def square(n):
        x, y = draw.normal(n, n), draw.normal(n, n)
        return 2 * n**3 / seconds(lambda: x @ y)

    rows, flops, total = [], 0, 0.0
    for times, M, K, N in roofline.model_gemms(config, 16384):
        for product, took in products(M, K, N).items():
            rows.append({"product": product, "M": M, "K": K, "N": N, "tflops": 2e-12 * M * K * N / took})
            flops, total = flops + times * 2 * M * K * N, total + times * took
    return {"copy": copy(), "triad": triad(), "gemm": flops / total, "square": square(8192), "gemms": rows}
