"""Measures times, memory and rates of a GPU, and reads its state. Nothing here changes the settings of the GPU."""
import statistics
import subprocess
from collections import deque
from functools import partial
from pathlib import Path

import torch

from .. import roofline
from .peers import Draw


class CudaTimer:
    """Times on the current stream, in ms."""

    def __init__(self):
        self.stream = torch.cuda.Stream()                        # the default stream cannot be captured
        self.failed = []                                         # graphs: the allocator may ask one still whether it captures

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


def compete(runs, rounds, clock):
    """name -> list of ms, one per round. runs: name -> function of the round's number; clock: CudaTimer.queued or .alone."""
    times = {name: [] for name in runs}
    for number in range(rounds if runs else 0):
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


SMI = ("driver_version", "clocks.sm", "clocks.mem", "power.draw", "power.limit", "temperature.gpu")


def _answer(*command):
    """The first line that a command prints, "" if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.partition("\n")[0].strip()


def gpu_state():
    """What nvidia-smi says of this GPU: a dict of texts with units, its keys those of SMI; empty if it says nothing."""
    uuid = str(torch.cuda.get_device_properties(0).uuid).removeprefix("GPU-")  # nvidia-smi also counts GPUs hidden from this process
    answer = _answer("nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader", "-i", f"GPU-{uuid}")
    return dict(zip(SMI, (part.strip() for part in answer.split(",")))) if answer else {}


def git_revision():
    """Git revision of the source, with "+" if it was changed; "" outside of a repository."""
    return _answer("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*")


def measure_rates(timer, config, rounds=20):
    """Rates of this GPU on random data (on zeros it would be faster).

    Returns:
        (bytes/s of a copy, read and written; FLOP/s over all matrix products of a model of this ModelConfig, forward and backward,
        at 16384 tokens)
    """
    def seconds(run):
        run()
        return statistics.median(timer.queued([run] * rounds)) / 1e3

    draw, flops, total = Draw("cuda", torch.bfloat16), 0, 0.0
    for times, M, K, N in roofline.model_gemms(config, 16384):
        x, weight, dout = draw.normal(M, K), draw.normal(N, K), draw.normal(M, N)
        for a, b in ((x, weight.t()), (dout, weight), (dout.t(), x)):
            flops, total = flops + times * 2 * M * K * N, total + times * seconds(partial(torch.matmul, a, b))
    source = draw.normal(10**9)                                  # 2 GB
    target = torch.empty_like(source)
    return 4e9 / seconds(lambda: target.copy_(source)), flops / total
