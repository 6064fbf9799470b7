"""The GPU benchmark without a GPU: rooflines against figures worked out elsewhere, the form of every line, turns and ratios with a clock
that is made up, failures and absent peers, the table, and the whole path once on tiny shapes."""
import json
import os
import subprocess
import sys
import types

import pytest
import torch
from helpers import ROOT
from kernel_check import DEVICE
from tolerances import KERNEL_EPS, KERNEL_FACTOR

from kernels import reference, roofline
from kernels.bench import __main__ as bench
from kernels.bench import clock, peers, table
from kernels.bench import step as step_
from kernels.bench.table import BEGIN, END, MISSING, check_record, render
from minillama.config import ModelConfig, preset
from minillama.nn import count_params
from minillama.report.plan import flops_per_token

INTERPRETED = pytest.mark.skipif(DEVICE.type == "cuda", reason="the smoke run is interpreted")
REFERENCE = peers.SHAPES["reference"]


# ----------------------------------------------------------------------------------------------------------------------------- rooflines

@pytest.mark.parametrize(("kernel", "direction", "ms"), [
    ("rmsnorm", "forward", 0.0624), ("rmsnorm", "backward", 0.0936), ("add_rmsnorm", "forward", 0.1249),
    ("add_rmsnorm", "backward", 0.1249), ("rope", "forward", 0.1249), ("rope", "backward", 0.1249), ("swiglu", "forward", 0.2517),
    ("swiglu", "backward", 0.4194), ("cross_entropy", "forward", 0.244), ("cross_entropy", "forward+backward", 0.488),
    ("linear_cross_entropy", "forward", 5.44), ("linear_cross_entropy", "forward+backward", 16.31), ("embedding", "forward", 0.0624),
    ("embedding", "backward", 0.092), ("adamw", "backward", 8.65), ("adamw", "forward", 1.153),
])
def test_rooflines_at_the_reference_shape(kernel, direction, ms):
    """At 4.3 TB/s and 790 TFLOP/s, to the digits given."""
    count = roofline.bytes_and_flops(kernel, direction, REFERENCE, "bfloat16")
    assert roofline.roofline_ms(count) == pytest.approx(ms, rel=5e-3)


@pytest.mark.parametrize(("T", "forward", "backward"), [
    (1, 0.174, 0.435), (2, 0.348, 0.870), (4, 0.696, 1.74), (8, 1.39, 3.48), (16, 2.78, 6.96)])
def test_rooflines_of_attention(T, forward, backward):
    shape = peers.ATTENTION_SHAPES[f"T={T}k"]
    assert roofline.roofline_ms(roofline.bytes_and_flops("attention", "forward", shape, "bfloat16")) == pytest.approx(forward, rel=3e-3)
    assert roofline.roofline_ms(roofline.bytes_and_flops("attention", "backward", shape, "bfloat16")) == pytest.approx(backward, rel=3e-3)
    size, flops = roofline.bytes_and_flops("attention", "forward+backward", shape, "bfloat16")
    assert (size, flops) == (12 * 2 * 16384 * 4096, 7 * 16384 * T * 1024 * 4096)


def test_the_larger_of_the_two_binds():
    assert roofline.roofline_ms((2e9, 1e9), 1e12, 1e12) == pytest.approx(2)
    assert roofline.roofline_ms((1e9, 3e9), 1e12, 1e12) == pytest.approx(3)


def test_step_flops():
    config = step_.MODEL
    assert (config.hidden_dim, config.head_dim) == (5504, 128)
    assert count_params(config) == pytest.approx(1.345e9, rel=1e-3)
    counts = roofline.step_flops(config, 2048)
    matrices = 24 * (4 * 2048 * 2048 + 3 * 2048 * 5504) + 32000 * 2048
    norms = (2 * 24 + 1) * 2048                                  # flops_per_token counts their gains as entries of a matrix
    assert counts["causal"] == flops_per_token(config, 2048) == 6 * (matrices + norms) + 6 * 24 * 2048 * 2048
    assert counts["full"] - counts["causal"] == 6 * 24 * 2048 * 2048
    assert counts["full"] / counts["causal"] == pytest.approx(1.07, abs=0.01)


def test_the_gemm_list_is_the_models():
    config = step_.MODEL
    flops = sum(times * 2 * M * K * N for times, M, K, N in roofline.model_gemms(config, 7))
    matrices = count_params(config) - config.vocab_size * config.dim - (2 * config.n_layers + 1) * config.dim
    assert flops == 2 * matrices * 7


def test_every_kernel_has_a_workload_a_roofline_and_a_goal():
    assert peers.WORKLOADS.keys() == roofline.COUNTS.keys() == table.GOALS.keys()
    assert (bench.FACTOR, bench.EPS) == (KERNEL_FACTOR, KERNEL_EPS)
    for kernel, workload in peers.WORKLOADS.items():
        assert next(iter(workload.builders)) == "ours"
        shape = peers.ATTENTION_SHAPES["T=2k"] if kernel == "attention" else REFERENCE
        only = {letter: shape[letter] for letter in workload.letters}
        counts = [roofline.bytes_and_flops(kernel, "forward", letters, "bfloat16") for letters in (only, REFERENCE)]
        assert counts[0] == counts[1]


# -------------------------------------------------------------------------------------------------------------------- clock and turns

class FakeTimer(clock.HostTimer):
    """Runs everything, and says that it took as long as is written down: eager times by a counter, replays 0.25 ms a call."""

    captures = True

    def __init__(self, refuse=()):
        self.refuse, self.order = refuse, []

    def capture(self, calls, times):
        if len(self.order) in self.refuse:
            self.order.append("refused")
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        self.order.append(times)
        for call in calls:
            call()
        return lambda: None

    def alone(self, runs):
        for run in runs:
            run()
        return [0.1 * (i + 1) for i in range(len(runs))]

    def queued(self, runs):
        for run in runs:
            run()
        return [0.25 * number for number in self.order if number != "refused"]

    def peak_mb(self, run):
        run()
        return 12.5


def test_contenders_take_turns():
    order = []
    runs = {name: lambda number, name=name: order.append((name, number)) for name in "abc"}
    times = clock.compete(runs, 3, lambda given: [run() or float(i) for i, run in enumerate(given)])
    assert order == [(name, number) for number in range(3) for name in "abc"]
    assert times == {"a": [0.0] * 3, "b": [1.0] * 3, "c": [2.0] * 3}


def test_the_gpus_clock_on_a_made_up_gpu(monkeypatch):
    """What is put between which events; that outputs of a capture live until their turn comes again."""
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = len(log)
            log.append("event")

        def elapsed_time(self, end):
            return float(end.at - self.at)

    class Graph:
        def replay(self):
            log.append("replay")

    class Capture:
        def __init__(self, graph, stream):
            assert isinstance(graph, Graph) and stream == "stream"

        def __enter__(self):
            log.append("begin")

        def __exit__(self, *error):
            log.append("end")

    for name, fake in {"Event": Event, "CUDAGraph": Graph, "graph": Capture, "Stream": lambda: "stream",
                       "synchronize": lambda: log.append("wait"), "reset_peak_memory_stats": lambda: log.append("reset"),
                       "memory_allocated": lambda: 2**20, "max_memory_allocated": lambda: 5 * 2**20}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    timer = clock.CudaTimer()
    runs = [lambda: log.append("a"), lambda: log.append("b")]
    assert timer.queued(runs) == [2, 2]
    assert log == ["a", "event", "a", "event", "event", "b", "event", "wait"]
    log.clear()
    assert timer.alone(runs) == [2, 2]
    assert log == ["wait", "event", "a", "event", "wait", "wait", "event", "b", "event", "wait"]
    log.clear()
    alive, most = set(), []

    class Output:
        def __init__(self):
            alive.add(id(self))
            most.append(len(alive))

        def __del__(self):
            alive.discard(id(self))

    replay = timer.capture([lambda: log.append("a") or Output(), lambda: log.append("b") or Output()], 4)
    assert log == ["begin", "a", "b", "a", "b", "end"] and most == [1, 2, 3, 3]
    replay()
    assert log[-1] == "replay"
    assert timer.peak_mb(lambda: log.append("a")) == 4
    assert timer.failed == []
    with pytest.raises(ZeroDivisionError):
        timer.capture([lambda: 1 / 0], 1)
    assert [type(graph) for graph in timer.failed] == [Graph]    # not destroyed: the allocator may still ask it


def test_rates_of_a_made_up_gpu(monkeypatch):
    class Small(peers.Draw):
        def __init__(self, device, dtype):
            super().__init__("cpu", dtype)

        def normal(self, *shape, dtype=None):
            return super().normal(*(max(1, size // 2048) for size in shape), dtype=torch.float32) if len(shape) > 1 else torch.ones(4)

    class Timer:
        def queued(self, runs):
            return [run() is None or 2.0 for run in runs]        # each takes 2 ms

    monkeypatch.setattr(clock.peers, "Draw", Small)
    rates = clock.measure_rates(Timer(), step_.MODEL, rounds=1)
    assert (rates["copy"], rates["triad"], rates["square"]) == (2e12, 3e12, 2 * 8192**3 / 2e-3)
    flops = 3 * sum(times * 2 * M * K * N for times, M, K, N in roofline.model_gemms(step_.MODEL, 16384))
    assert rates["gemm"] == pytest.approx(flops / (3 * (4 * 24 + 1) * 2e-3))
    assert len(rates["gemms"]) == 15
    json.dumps(rates)


def test_percentiles_and_paired_ratio():
    assert clock.percentiles([5, 1, 4, 2, 3, 6, 8, 7, 10, 9, 11]) == {"p20": 3, "p50": 6, "p80": 9}
    assert clock.paired_ratio([2, 40, 6], [1, 10, 3]) == 2        # a slow round slows both, and does not count more


def test_enough_input_sets_to_leave_the_cache():
    case = bench.make_case("rmsnorm", "smoke", True)
    size = 4 * (12 * 32 + 32)
    assert len(bench.input_sets(case, 0)) == 1
    sets = bench.input_sets(case, 10 * size // 4 + 1)
    assert len(sets) == 11
    assert not torch.equal(sets[0][0][0], sets[1][0][0])
    assert all(dout.shape == (12, 32) for _, (dout,) in sets)


@INTERPRETED
def test_lines_of_a_case(tmp_path):
    """Graph and eager lines, paired ratios, rooflines of this run's rates, and a contender whose capture fails keeps its eager time."""
    path = tmp_path / "r.jsonl"
    results = bench.Results(path, False, True)
    timer = FakeTimer(refuse=[1])
    rates = {"copy": 1e9, "gemm": 1e12}
    providers = ["ours", "ours-autograd", "eager", "liger"]
    bench.Bench(results, timer, rates, 4, l2_bytes=1000).kernel(bench.make_case("swiglu", "smoke", True), providers)
    results.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        check_record(line)
    absent = [line for line in lines if line["absent"]]
    assert [(line["provider"], line["ok"], line["ms"]) for line in absent] == [("liger", False, None)]
    assert "liger_kernel" in absent[0]["error"]
    forward = [(line["provider"], line["mode"]) for line in lines if line["direction"] == "forward"]
    assert forward == [("ours", "graph"), ("ours", "eager"), ("ours-autograd", "eager"), ("eager", "eager")]  # its second capture failed
    graph, eager = (next(line for line in lines if line["mode"] == mode and line["provider"] == "ours") for mode in ("graph", "eager"))
    assert graph["ms"]["p50"] == pytest.approx(0.25) and graph["n"] == 4 and graph["peak_mb"] == 12.5
    assert graph["bytes"] == 3 * 4 * 12 * 40
    assert graph["roofline_ms"] == pytest.approx(1e3 * graph["bytes"] / 1e9)
    assert graph["roofline_pct"] == pytest.approx(100 * graph["roofline_ms"] / 0.25)
    assert graph["fixed_roofline_ms"] == pytest.approx(1e3 * graph["bytes"] / 4.3e12)
    assert graph["tbps"] == pytest.approx(graph["bytes"] / 0.25e-3 / 1e12)
    assert eager["ratio"] == 1
    slower = next(line for line in lines if line["provider"] == "eager" and line["mode"] == "eager" and line["direction"] == "forward")
    assert slower["ratio"] == pytest.approx(3)                   # third in line, 0.3 ms to 0.1
    captured = [number for number in timer.order if number != "refused"]
    assert all(number >= 2 for number in captured)               # several calls in a replay of 0.5 ms


@INTERPRETED
def test_a_failed_capture_does_not_end_the_benchmark(tmp_path, monkeypatch, capsys):
    """As torch 2.11 does it: from the first failure on, the allocator takes a capture to be underway, and refuses to empty its cache."""
    underway, captured = [], []

    class Timer(FakeTimer):
        def capture(self, calls, times):
            captured.append(len(calls))
            if len(captured) == 1:
                underway.append(True)
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            torch.cuda.empty_cache()                             # torch.cuda.graph begins with it
            return super().capture(calls, times)

    def empty_cache():
        if underway:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp:3941")

    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    monkeypatch.setattr(bench, "HostTimer", Timer)
    path = tmp_path / "r.jsonl"
    assert bench.main(["--smoke", "--only", "rmsnorm,swiglu", "--peers", "eager,ours-autograd", "--json", str(path)]) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    timed = {(line["kernel"], line["direction"], line["provider"]) for line in lines if line.get("mode") == "eager" and line["ms"]}
    assert len(timed) == 2 * 3 * 3                               # kernels, directions and contenders: nothing is missing
    assert len(captured) == 2 * 3 * 2                            # ours-autograd is not captured
    assert [line["when"] for line in lines if line["kernel"] == "machine"] == ["before", "after"]
    assert "not captured: RuntimeError: CUDA error: operation failed" in capsys.readouterr().err

    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "empty_cache", lost)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        bench.free()


@INTERPRETED
def test_resume_measures_only_what_is_missing(tmp_path, capsys):
    path = tmp_path / "r.jsonl"
    command = ["--smoke", "--only", "rmsnorm", "--peers", "eager", "--json", str(path)]
    assert bench.main(command) == 0
    whole = path.read_text().splitlines()
    assert bench.main(command) == 2
    assert f"--json must name a new file, got {path}, which exists: add --resume to continue it" in capsys.readouterr().err
    assert path.read_text().splitlines() == whole
    assert len(whole) == 8                                       # the machine before and after, two contenders in three directions
    cut = [line for line in whole[:-1] if not ('"backward"' in line and '"eager", "ms"' in line)]
    unfinished = "\n".join([*whole[:4], whole[4][:50]])
    path.write_text(unfinished)
    assert cut and bench.main([*command, "--resume"]) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    seen = [(line["direction"], line["provider"]) for line in lines if line["kernel"] == "rmsnorm"]
    assert sorted(seen) == sorted((direction, provider) for direction in roofline.DIRECTIONS for provider in ("ours", "eager"))
    assert bench.main([*command, "--resume"]) == 0
    assert len(path.read_text().splitlines()) == len(lines) + 2  # the machine again, and nothing else
    capsys.readouterr()


def test_a_time_limit_stops_between_cases(tmp_path, monkeypatch, capsys):
    path = tmp_path / "r.jsonl"
    monkeypatch.setattr(bench, "_units", lambda *a: [("one", lambda: None), ("two", lambda: None)])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert bench.main(["--smoke", "--minutes", "1e-9", "--only", "rope", "--json", str(path)]) == 0
    assert "stopped after 1e-09 minutes, before one: 0 of 2 done; continue with --resume" in capsys.readouterr().err
    assert [json.loads(line)["when"] for line in path.read_text().splitlines()] == ["before", "after"]


def test_the_order_of_work():
    order = bench.plan(bench.SUITES, None, False)
    assert order[0] == ("attention", "T=2k")
    assert len(order) == len(set(order)) == 5 + 8 + 1 + 7 + 8 + 8
    assert ("adamw", "1.3B") not in order
    assert order.index(("step", None)) < order.index(("rmsnorm", "1.3B"))
    assert bench.plan(["kernels"], ["rope"], False) == [("rope", "reference"), ("rope", "1.3B"), ("rope", "small"), ("rope", "odd")]


# ----------------------------------------------------------------------------------------------------------------- verified before timed

def contender(change):
    """PyTorch's swiglu with its forward or backward changed."""
    right = peers.autograd(reference.swiglu_forward, (0, 1))
    return change(right)


@pytest.mark.parametrize(("change", "error"), [
    (lambda right: right._replace(forward=lambda gate, up: ((out := right.forward(gate, up))[0] * 1.01, out[1])), "of the largest value"),
    (lambda right: right._replace(backward=lambda douts, cache: [-g for g in right.backward(douts, cache)]), "of the largest value"),
    (lambda right: right._replace(backward=lambda douts, cache: [g * float("nan") for g in right.backward(douts, cache)]),
     "of the largest value, got nan"),
    (lambda right: right._replace(backward=lambda douts, cache: right.backward(douts, cache)[:1]),
     "must give 3 outputs and gradients, got 2"),
    (lambda right: right._replace(forward=lambda gate, up: (right.forward(gate, up)[0].T, ())), "must give shape (12, 40), got (40, 12)"),
    (lambda right: right._replace(both=lambda douts, *inputs: (inputs[0], inputs)), "of the largest value"),
    (lambda right: right._replace(backward=lambda douts, cache: [g * (1 + 3e-6) for g in right.backward(douts, cache)]),
     "error must be at most"),
    (lambda right: right, None),
])
def test_the_judge(change, error):
    case = bench.make_case("swiglu", "smoke", True)
    wrong = contender(change)
    if error and "shape" in error:
        wrong = wrong._replace(backward=lambda douts, cache: [torch.zeros(12, 40)] * 2)
    verdict = bench.Judge(case).verdict(wrong)
    assert verdict.error is None if error is None else error in verdict.error


def test_wrong_and_failing_contenders_get_no_time(monkeypatch, tmp_path):
    """Nor do they stop the others."""
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")

    def wrong():
        return contender(lambda right: right._replace(backward=lambda douts, cache: [2 * g for g in right.backward(douts, cache)]))

    workload = peers.WORKLOADS["swiglu"]
    builders = {"ours": full, "eager": workload.builders["eager"], "liger": wrong}
    monkeypatch.setitem(peers.WORKLOADS, "swiglu", workload._replace(builders=builders))
    path = tmp_path / "r.jsonl"
    results = bench.Results(path, False, True)
    bench.Bench(results, FakeTimer(), None, 2, 0).kernel(bench.make_case("swiglu", "smoke", True), list(builders))
    results.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert results.faults == 1
    assert {line["provider"] for line in lines if line["ms"]} == {"eager"}
    assert lines[0]["error"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert not lines[0]["absent"] and lines[1]["provider"] == "liger" and lines[1]["max_err"] > 0.1


def test_resume_leaves_out_what_failed(tmp_path):
    path = tmp_path / "r.jsonl"
    results = bench.Results(path, False, True)
    empty = bench.blank("swiglu", "smoke", {}, torch.float32, "liger")
    results.write(empty | {"error": "RuntimeError: CUDA error"})
    results.write(empty | {"provider": "eager", "direction": "forward", "error": "OutOfMemoryError: full"})
    results.close()
    again = bench.Results(path, True, True)
    again.close()
    done = [(p, d) for p in ("liger", "eager", "ours") for d in roofline.DIRECTIONS if again.is_done("swiglu", "smoke", d, p)]
    assert done == [*(("liger", direction) for direction in roofline.DIRECTIONS), ("eager", "forward")]


def test_a_lost_gpu_ends_the_run(monkeypatch, tmp_path, capsys):
    class Dead(FakeTimer):
        def synchronize(self):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    workload = peers.WORKLOADS["swiglu"]
    monkeypatch.setitem(peers.WORKLOADS, "swiglu", workload._replace(builders={"ours": broken}))
    monkeypatch.setattr(bench, "HostTimer", Dead)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    path = tmp_path / "r.jsonl"
    assert bench.main(["--smoke", "--only", "swiglu", "--json", str(path)]) == 1
    assert "error: the GPU no longer answers this process after the last failure (RuntimeError: CUDA error" in capsys.readouterr().err
    assert json.loads(path.read_text().splitlines()[-1])["error"].startswith("RuntimeError: CUDA error")


def test_ligers_rope_is_verified_in_its_own_layout(monkeypatch):
    """A stand-in with Liger's signature, that turns halves and writes over what it gets."""
    class Rope(torch.autograd.Function):
        @staticmethod
        def turn(x, cos, sin):
            a, b = x.chunk(2, -1)
            return x.copy_(x * cos + torch.cat((-b, a), -1) * sin)

        @staticmethod
        def forward(ctx, q, k, cos, sin):
            ctx.tables = cos, sin
            return Rope.turn(q.detach().clone(), cos, sin), Rope.turn(k.detach().clone(), cos, sin)

        @staticmethod
        def backward(ctx, dq, dk):
            cos, sin = ctx.tables
            return Rope.turn(dq, cos, -sin), Rope.turn(dk, cos, -sin), None, None

    module = types.ModuleType("liger_kernel.transformers.functional")
    module.liger_rope = Rope.apply
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", types.ModuleType("liger_kernel.transformers"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.functional", module)
    judge = bench.Judge(bench.make_case("rope", "smoke", True))
    assert judge.verdict(peers.WORKLOADS["rope"].builders["liger"]()).error is None
    assert judge.verdict(peers.WORKLOADS["rope"].builders["liger"]()._replace(leave=lambda outputs, gradients: (
        (torch.cat([x.transpose(1, 2) for x in outputs], 2),), (torch.cat([x.transpose(1, 2) for x in gradients], 2),)))).error


@pytest.mark.parametrize("kernel", list(peers.WORKLOADS))
def test_pytorchs_own_ops_pass_everywhere(kernel):
    """Truth, eager and the inputs of every workload agree in form."""
    workload = peers.WORKLOADS[kernel]
    case = bench.make_case(kernel, "smoke", True)
    assert bench.Judge(case).verdict(workload.builders["eager"]()).error is None


# ---------------------------------------------------------------------------------------------------------------------- lines and table

def line(kernel="rmsnorm", **changes):
    common = {"schema": 1, "time": "2026-01-02T03:04:05+00:00", "smoke": False, "git": None, "torch": "2.11.0", "triton": "3.6.0",
              "gpu": "NVIDIA H200", "clocks": None}
    if kernel == "machine":
        return common | dict.fromkeys(table.MACHINE) | {
            "kernel": kernel, "when": "before", "python": "3.12", "copy_tbps": 4.3, "gemm_tflops": 700.0, "gemms": [],
        } | changes
    shape_name = changes.pop("shape_name", "reference")
    record = common | bench.blank(kernel, shape_name, {}, torch.bfloat16, "ours") | {
        "direction": "forward", "mode": "graph", "ms": {"p20": 0.06, "p50": 0.07, "p80": 0.08}, "n": 30, "ok": True, "roofline_pct": 89.0,
        "ratio": 1.0, "peak_mb": 100.0}
    return record | changes


@pytest.mark.parametrize(("record", "sentence"), [
    (line(kernel="softmax"), "kernel must be machine, step, kept or one of rmsnorm, add_rmsnorm,"),
    ({name: value for name, value in line().items() if name != "tbps"}, "a line about rmsnorm must have the field tbps"),
    (line(n="30"), "n must be int or NoneType in a line about rmsnorm, got '30'"),
    (line(n=True), "n must be int or NoneType in a line about rmsnorm, got True"),
    (line(speed=1), "a line about rmsnorm must not have the field speed"),
    (line(schema=2), "schema must be 1, got 2"),
    (line(direction="sideways"), "mode graph, eager or null, got 'sideways' and 'graph'"),
    (line(mode="guess"), "mode graph, eager or null, got 'forward' and 'guess'"),
    (line(ms={"p20": 2, "p50": 1, "p80": 3}), "must be positive and rising"),
    (line(ms={"p50": 1}), "must be positive and rising"),
    (line(ok=False), "must be positive and rising"),
    (line(ok=False, ms=None), "must be ok or have an error, and be absent only with an error, got ok False"),
    (line(error="why"), "got ok True, absent False, error 'why'"),
    (line(ok=True, absent=True), "got ok True, absent True, error None"),
    ({name: value for name, value in line("step").items() if name != "batch"}, "a line about step must have the field batch"),
])
def test_lines_that_are_refused(record, sentence):
    with pytest.raises(ValueError) as error:
        check_record(record)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_lines_that_are_right():
    nothing = {"ok": False, "ms": None, "error": "no such module"}
    for record in (line(), line("machine"), line("step", batch=4), line("kept", direction=None, mode=None, ms=None),
                   line(**nothing), line(absent=True, **nothing)):
        check_record(record)


def row(text, *starts):
    return next(found for found in text.splitlines() if found.startswith("| " + " | ".join(starts) + " |"))


def test_the_table_without_results(monkeypatch, tmp_path):
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    text = render(table.read())
    for kernel in table.GOALS:
        found = next(found for found in text.splitlines() if found.startswith(f"| {kernel}"))
        assert found.endswith(f"{'T=2k' if kernel == 'attention' else 'reference'} | {table.GOALS[kernel]} |")
    assert text.startswith("No figure has been measured on a GPU yet") and MISSING not in text
    assert "The goal for training at 1.3B parameters, T = 2048, is a causal MFU of 57 %." in text


def test_the_readme_shows_the_results_of_the_repository(monkeypatch, tmp_path):
    """kernels/README.md is where --into writes without a FILE, and holds what it would write."""
    assert table.README == ROOT / "kernels" / "README.md"
    copy = tmp_path / "README.md"
    copy.write_text(table.README.read_text())
    monkeypatch.setattr(table, "README", copy)
    assert bench.main(["--render", "--into"]) == 0
    assert copy.read_text() == (ROOT / "kernels" / "README.md").read_text()


def test_the_table(tmp_path):
    """The newest line of each GPU counts, smoke runs do not, and what failed or is absent is said."""
    records = [
        line("machine"), line(ms={"p20": 1.0, "p50": 1.5, "p80": 2.0}, time="2025-01-01T00:00:00+00:00"), line(),
        line(direction="backward", ms={"p20": 0.1, "p50": 0.111, "p80": 0.2}, roofline_pct=85.2),
        line(provider="compile", ratio=1.049), line(provider="compile", direction="backward", ratio=1.2),
        line(provider="liger", direction=None, mode=None, ms=None, ok=False, absent=True, error="ModuleNotFoundError: liger_kernel"),
        line(mode="eager", direction="forward+backward", peak_mb=1234.4),
        line("cross_entropy", direction="forward+backward", roofline_pct=88.0),
        line("cross_entropy", direction="forward+backward", mode="eager", provider="liger", ratio=1.5),
        line("swiglu", provider="compile", direction=None, mode=None, ms=None, ok=False, error="OutOfMemoryError: full"),
        line("attention", shape_name="T=2k", provider="cudnn", ratio=0.8), line("attention", shape_name="T=2k", roofline_pct=57.0),
        line("step", shape_name="1.3B", direction="forward+backward", mode="eager", batch=16, tokens_per_s=68123.0, peak_mb=2048.0,
             mfu={"causal": 0.57, "full": 0.61, "causal_of_measured": 0.8, "full_of_measured": 0.86}),
        line("kept", shape_name="1.3B", direction=None, mode=None, ms=None, bytes_per_token_layer=46656.0),
        line(gpu="NVIDIA A100"), line("rope", smoke=True),
    ]
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"half a li')
    text = render(table.read([path]))
    a100, h200 = text.split("**NVIDIA H200**")
    assert "**NVIDIA A100**" in a100
    assert "copy, 4.30 TB/s" in h200 and "700 TFLOP/s" in h200
    assert row(h200, "rmsnorm", "reference") == (
        f"| rmsnorm | reference | 0.070 / 0.111 | 89 / 85 | 92 / 85 | 1.05 / 1.20 | {MISSING} | absent | 1,234 | {MISSING} |")
    assert "| 0.070 | 88 | 88 |" in row(h200, "cross_entropy (loss and gradient)", "reference")
    assert "| 1.50 |" in row(h200, "cross_entropy (loss and gradient)", "reference")
    assert "| failed |" in row(h200, "swiglu", "reference")
    assert "| 0.070 / – | 57 / – | 57 / 33 | cudnn: 0.80 / – |" in row(h200, "attention", "T=2k")
    assert row(h200, "ours, Triton attention") == "| ours, Triton attention | 16 | 68,123 | 57.0% / 61.0% | 80.0% | 2.0 |"
    assert row(h200, "ours") == "| ours | 46.7 kB |"
    assert row(h200, "rope", "reference").count(MISSING) == 7    # the smoke run's line is no figure


def test_a_bad_line_is_named(tmp_path, capsys):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(line()) + "\n" + json.dumps(line(schema=9)) + "\n")
    assert bench.main(["--render", str(path)]) == 2
    assert capsys.readouterr().err == f"error: {path} line 2: schema must be 1, got 9\n"


def test_only_the_part_between_the_markers_is_replaced(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(f"# title\n{BEGIN}\nold\n{END}\nend, no newline")
    (tmp_path / "r.jsonl").write_text(json.dumps(line()) + "\n")
    for _ in range(2):
        assert bench.main(["--render", str(tmp_path / "r.jsonl"), "--into", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith(f"# title\n{BEGIN}\n**NVIDIA H200**") and text.endswith(f"\n{END}\nend, no newline")
    assert "old" not in text and text.count(BEGIN) == 1
    readme.write_text("no markers")
    assert bench.main(["--render", str(tmp_path / "r.jsonl"), "--into", str(readme)]) == 2
    assert "must have one line" in capsys.readouterr().err and readme.read_text() == "no markers"


def test_results_in_the_repository_are_sound():
    for record in table.read():
        assert record["gpu"]


# ------------------------------------------------------------------------------------------------------------------- memory, model, CLI

def test_bytes_kept_for_backward():
    """Ours is the sum in kernels/block.py: 6 D + 2 F elements and 4 H bytes."""
    config = ModelConfig(**preset("7B").model)
    ours = step_.kept_by_ours(config, 2048)
    assert ours == 2 * (6 * 4096 + 2 * 11008) + 4 * 32
    formula = step_.fitted(step_.kept_by_reference, torch.bfloat16)
    assert formula["TH"] == 0                                    # no square of scores
    assert step_.at(formula, config, 2048) > 1.5 * ours


def test_kept_counts_storages_once():
    x = torch.zeros(4, 8, requires_grad=True)
    weight = torch.zeros(8, requires_grad=True)
    assert step_.kept_by_autograd(lambda: (x.view(8, 4) * 2).sin() + x[:2].cos().sum()) == 2 * 4 * 32  # 2x; x by its view of half
    assert step_.kept_by_autograd(lambda: x * weight, [weight]) == 4 * 32


def test_batches():
    config, gib = step_.MODEL, 2**30
    assert step_.batches_that_may_fit(config, 2048, 1000 * gib, 46656) == [16, 8, 4, 2, 1]
    assert step_.batches_that_may_fit(config, 2048, 70 * gib, 46656)[0] == 8
    assert step_.batches_that_may_fit(config, 2048, 1 * gib, 46656) == [1]


def test_training_falls_back_to_the_batch_that_fits():
    seen = []

    def step(tokens, targets):
        seen.append(len(tokens))
        assert tokens.shape == targets.shape == (len(tokens), 8)
        if len(tokens) > 2:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory")
            except torch.OutOfMemoryError as error:
                raise ValueError("a smaller batch_size, please") from error

    batch, times = step_.train(step, step_.SMOKE_MODEL, 8, [8, 4, 2, 1], warmup=2, steps=3)
    assert (batch, seen, len(times)) == (2, [8, 4, 2, 2, 2, 2, 2], 3)
    seen.clear()
    with pytest.raises(ZeroDivisionError):                       # at once: a smaller batch does not help
        step_.train(lambda *batch: seen.append(1) or 1 / 0, step_.SMOKE_MODEL, 8, [8, 4], 2, 3)
    assert len(seen) == 1


def test_trainers_of_peers_learn_the_same_thing():
    """The compiled peer (here without compiling) follows the engine of the same parameters step by step."""
    from kernels.engine import TorchEngine
    from kernels.model import Llama
    from minillama.config import TrainConfig

    config, device = step_.SMOKE_MODEL, torch.device("cpu")
    params = step_.fresh_params(config, device)
    engine = TorchEngine(config, TrainConfig(seq_len=8), params, device="cpu", dtype="float32")
    model = Llama(config, "reference", params={name: torch.from_numpy(array.copy()) for name, array in params.items()})
    peer = step_._trainer(model, model, device)
    tokens = torch.randint(0, config.vocab_size, (2, 9)).numpy()
    for _ in range(4):
        expected = engine.train_step([(tokens[:, :-1], tokens[:, 1:])], step_.LR).loss
        assert peer(tokens[:, :-1], tokens[:, 1:]) == pytest.approx(expected, rel=1e-5)
    rounded = Llama(config, "reference", params={name: torch.from_numpy(array).bfloat16() for name, array in params.items()})
    before = rounded.output.detach().clone()
    step_._trainer(rounded, rounded, device)(tokens[:, :-1], tokens[:, 1:])
    assert not torch.equal(rounded.output, before)               # the master weights come back


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["--suite", "kernel"], "--suite must be some of kernels,attention,step, got 'kernel'"),
    (["--suite", ","], "--suite must be some of kernels,attention,step, got none"),
    (["--only", "softmax"], f"--only must be some of {','.join(peers.WORKLOADS)},step, got 'softmax'"),
    (["--peers", "apex"], "--peers must be some of ours,ours-autograd,eager,compile,"),
    (["--minutes", "0"], "--minutes must be a positive number, got 0.0"),
    (["--minutes", "soon"], "argument --minutes: invalid float value: 'soon'"),
    (["--resume"], "--resume needs --json FILE"),
    (["--into", "x"], "--into needs --render"),
    (["--speed"], "unrecognized arguments: --speed"),
    (["--render", "/no/such/file"], "No such file"),
])
def test_bad_arguments(arguments, sentence, capsys):
    assert bench.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1


@pytest.mark.skipif(DEVICE.type == "cuda", reason="there is a GPU")
def test_without_a_gpu(capsys):
    assert bench.main([]) == 2
    assert capsys.readouterr().err == ("error: there is no CUDA GPU to measure on: --smoke tests this program, --memory counts bytes, "
                                       "--render prints results\n")


def test_what_nvidia_smi_says(monkeypatch):
    class Answer:
        stdout = "NVIDIA H200, 580.159.04, 1980, 3201, 701.32, 700.00, [N/A]\n"

    monkeypatch.setattr(clock.subprocess, "run", lambda *a, **k: Answer)
    assert clock.gpu_state() == {"name": "NVIDIA H200", "driver": "580.159.04", "sm_mhz": 1980.0, "mem_mhz": 3201.0,
                                       "power_w": 701.32, "power_limit_w": 700.0, "temperature_c": None}

    def gone(*a, **k):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(clock.subprocess, "run", gone)
    assert set(clock.gpu_state().values()) == {None}
    assert clock.git_revision() is None


@INTERPRETED
def test_smoke(tmp_path):
    """The command as it is called, on a few kernels."""
    path = tmp_path / "s.jsonl"
    command = [sys.executable, "-m", "kernels.bench", "--smoke", "--suite", "kernels", "--only", "adamw,cross_entropy"]
    done = subprocess.run([*command, "--json", str(path)], cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for record in lines:
        check_record(record)
        assert record["smoke"]
    assert lines[0]["kernel"] == lines[-1]["kernel"] == "machine"
    ours = {(record["kernel"], record["direction"]) for record in lines if record.get("provider") == "ours" and record["ms"]}
    assert ours == {(kernel, direction) for kernel in ("adamw", "cross_entropy") for direction in roofline.DIRECTIONS}
    assert table.read([path]) == []
