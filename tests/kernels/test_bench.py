"""The GPU benchmark without a GPU: rooflines against figures worked out elsewhere, turns and ratios with a clock that is made up,
failures and absent peers, the table, and the whole command once on tiny shapes."""
import contextlib
import json

import pytest
import torch
from helpers import ROOT
from kernel_check import DEVICE
from tolerances import KERNEL_EPS, KERNEL_FACTOR

from kernels import reference, roofline
from kernels.bench import __main__ as bench
from kernels.bench import case, clock, memory, peers, step, table
from kernels.bench.table import BEGIN, END, MISSING, render
from minillama.config import ModelConfig
from minillama.nn import count_params
from minillama.report.plan import flops_per_token

INTERPRETED = pytest.mark.skipif(DEVICE.type == "cuda", reason="the tiny shapes are interpreted")
REFERENCE = peers.SHAPES["reference"]
SMALL_MODEL = ModelConfig(dim=16, n_layers=1, n_heads=2, vocab_size=31, multiple_of=8, max_seq_len=8)


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
    shape = peers.SHAPES[f"T={T}k"]
    assert roofline.roofline_ms(roofline.bytes_and_flops("attention", "forward", shape, "bfloat16")) == pytest.approx(forward, rel=3e-3)
    assert roofline.roofline_ms(roofline.bytes_and_flops("attention", "backward", shape, "bfloat16")) == pytest.approx(backward, rel=3e-3)
    size, flops = roofline.bytes_and_flops("attention", "forward+backward", shape, "bfloat16")
    assert (size, flops) == (12 * 2 * 16384 * 4096, 7 * 16384 * T * 1024 * 4096)


def test_the_larger_of_the_two_binds():
    assert roofline.roofline_ms((2e9, 1e9), 1e12, 1e12) == pytest.approx(2)
    assert roofline.roofline_ms((1e9, 3e9), 1e12, 1e12) == pytest.approx(3)


def test_step_flops():
    config = step.MODEL
    assert (config.hidden_dim, config.head_dim) == (5504, 128)
    assert count_params(config) == pytest.approx(1.345e9, rel=1e-3)
    counts = roofline.step_flops(config, 2048)
    matrices = 24 * (4 * 2048 * 2048 + 3 * 2048 * 5504) + 32000 * 2048
    norms = (2 * 24 + 1) * 2048                                  # flops_per_token counts their gains as entries of a matrix
    assert counts["causal"] == flops_per_token(config, 2048) == 6 * (matrices + norms) + 6 * 24 * 2048 * 2048
    assert counts["full"] - counts["causal"] == 6 * 24 * 2048 * 2048
    assert counts["full"] / counts["causal"] == pytest.approx(1.07, abs=0.01)


def test_the_gemm_list_is_the_models():
    config = step.MODEL
    flops = sum(times * 2 * M * K * N for times, M, K, N in roofline.model_gemms(config, 7))
    matrices = count_params(config) - config.vocab_size * config.dim - (2 * config.n_layers + 1) * config.dim
    assert flops == 2 * matrices * 7


def test_every_kernel_has_a_workload_a_roofline_and_a_goal():
    assert peers.WORKLOADS.keys() == roofline.COUNTS.keys() == table.GOALS.keys()
    assert (case.FACTOR, case.EPS) == (KERNEL_FACTOR, KERNEL_EPS)
    for kernel, workload in peers.WORKLOADS.items():
        assert next(iter(workload.builders)) == "ours"
        shape = peers.SHAPES["T=2k"] if kernel == "attention" else REFERENCE
        only = {letter: shape[letter] for letter in workload.letters}
        counts = [roofline.bytes_and_flops(kernel, "forward", letters, "bfloat16") for letters in (only, REFERENCE)]
        assert counts[0] == counts[1]


# -------------------------------------------------------------------------------------------------------------------- clock and turns

class FakeTimer:
    """Runs everything, and says that single calls took 0.1 ms, 0.2 ms ... in turn, and replays 0.25 ms a call."""

    stream = None

    def __init__(self, refuse=()):
        self.refuse, self.captures = refuse, []

    def capture(self, calls, times):
        self.captures.append(times)
        if len(self.captures) - 1 in self.refuse:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        for call in calls:
            call()
        return lambda: times

    def alone(self, runs):
        for run in runs:
            run()
        return [0.1 * (i + 1) for i in range(len(runs))]

    def queued(self, runs):
        return [0.25 * run() for run in runs]

    def peak_mb(self, run):
        run()
        return 12.5

    def synchronize(self):
        pass


def measured(kernel, providers, timer=None, rates=(1e9, 1e12), l2_bytes=0):
    """The lines about a kernel at the tiny shape."""
    lines = []
    case.Bench(lines.append, timer or FakeTimer(), rates, l2_bytes, rounds=2).kernel(kernel, "tiny", providers)
    json.dumps(lines, allow_nan=False)
    return lines


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

        def normal(self, *shape):
            return super().normal(*(max(1, size // 2048) for size in shape), dtype=torch.float32) if len(shape) > 1 else torch.ones(4)

    class Timer:
        def queued(self, runs):
            return [run() is None or 2.0 for run in runs]        # each takes 2 ms

    monkeypatch.setattr(clock, "Draw", Small)
    copy, gemm = clock.measure_rates(Timer(), step.MODEL, rounds=1)
    flops = 3 * sum(times * 2 * M * K * N for times, M, K, N in roofline.model_gemms(step.MODEL, 16384))
    assert copy == 2e12 and gemm == pytest.approx(flops / (3 * (4 * 24 + 1) * 2e-3))


def test_percentiles_and_paired_ratio():
    assert clock.percentiles([5, 1, 4, 2, 3, 6, 8, 7, 10, 9, 11]) == {"p20": 3, "p50": 6, "p80": 9}
    assert clock.paired_ratio([2, 8, 30], [1, 2, 20]) == 2       # a slow round slows both, and does not count more: not 8 / 2


def test_what_nvidia_smi_says(monkeypatch):
    asked = []

    class Answer:
        stdout = "580.159.04, 1980 MHz, 3201 MHz, 701.32 W, 700.00 W, [N/A]\nanother GPU\n"

    class Properties:
        uuid = "1234"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    monkeypatch.setattr(clock.subprocess, "run", lambda command, **options: asked.append(command) or Answer)
    state = clock.gpu_state()
    assert asked[0][-1] == "GPU-1234"
    assert (state["driver_version"], state["clocks.sm"], state["temperature.gpu"]) == ("580.159.04", "1980 MHz", "[N/A]")

    def gone(*arguments, **options):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(clock.subprocess, "run", gone)
    assert clock.gpu_state() == {} and clock.git_revision() == ""


# ------------------------------------------------------------------------------------------------------------------------------ a case

def test_enough_input_sets_to_leave_the_cache():
    tiny, size = case.make_case("rmsnorm", "tiny"), 4 * (12 * 32 + 32)
    assert len(case.input_sets(tiny, 0)) == 1
    sets = case.input_sets(tiny, 10 * size // 4 + 1)
    assert len(sets) == 11
    assert not torch.equal(sets[0][0][0], sets[1][0][0])
    assert all(dout.shape == (12, 32) for _, (dout,) in sets)


@INTERPRETED
def test_lines_of_a_case(monkeypatch, capsys):
    """Graph and single calls, paired ratios, rooflines of this run's rates; a contender whose capture fails keeps its single calls, and
    one of another's code is not captured at all."""
    timer, workload = FakeTimer(refuse=[1]), peers.WORKLOADS["swiglu"]
    builders = workload.builders | {"another": workload.builders["eager"]}
    monkeypatch.setitem(peers.WORKLOADS, "swiglu", workload._replace(builders=builders))
    lines = measured("swiglu", ["eager", "liger", "another"], timer, l2_bytes=1000)
    absent = [line for line in lines if "error" in line]
    assert [(line["provider"], line["absent"]) for line in absent] == [("liger", True)] and "liger_kernel" in absent[0]["error"]
    forward = [(line["provider"], line["mode"]) for line in lines if line.get("direction") == "forward"]
    assert forward == [("ours", "eager"), ("eager", "eager"), ("another", "eager"), ("ours", "graph")]  # the second capture failed
    assert "not captured: RuntimeError: operation not permitted when stream is capturing\n" in capsys.readouterr().err
    eager, slower, _, graph = (line for line in lines if line.get("direction") == "forward")
    assert graph["ms"]["p50"] == pytest.approx(0.25) and graph["n"] == 2 and graph["peak_mb"] == 12.5
    assert graph["bytes"] == 3 * 4 * 12 * 40
    assert graph["roofline_ms"] == pytest.approx(1e3 * graph["bytes"] / 1e9)
    assert graph["roofline_pct"] == pytest.approx(100 * graph["roofline_ms"] / 0.25)
    assert eager["ratio"] == 1 and slower["ratio"] == pytest.approx(2)
    assert timer.captures[0] == 6                                # two input sets, 0.1 ms a call: a replay of 0.5 ms or more
    assert len({line["direction"] for line in lines if "ms" in line}) == 3


@INTERPRETED
def test_a_failed_capture_does_not_end_the_benchmark(monkeypatch):
    """As torch 2.11 does it: from the first failure on, the allocator takes a capture to be underway, and refuses to empty its cache."""
    def empty_cache():
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp:3941")

    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    lines = measured("rmsnorm", ["eager"], FakeTimer(refuse=range(100)))
    assert {(line["direction"], line["provider"]) for line in lines if "ms" in line} == {
        (direction, provider) for direction in roofline.DIRECTIONS for provider in ("ours", "eager")}

    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "empty_cache", lost)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        case.free()


def changed(change):
    """PyTorch's swiglu with its forward or backward changed."""
    return change(peers.autograd(reference.swiglu_forward, (0, 1)))


def backward(function):
    """A change: function of the right gradients."""
    return lambda right: right._replace(backward=lambda douts, cache: function(right.backward(douts, cache)))


@pytest.mark.parametrize(("change", "error"), [
    (lambda right: right._replace(forward=lambda gate, up: ((out := right.forward(gate, up))[0] * 1.01, out[1])), "of the largest value"),
    (backward(lambda gradients: [-g for g in gradients]), "of the largest value"),
    (backward(lambda gradients: [g * float("nan") for g in gradients]), "of the largest value, got nan"),
    (backward(lambda gradients: gradients[:1]), "must have the shapes [(12, 40), (12, 40), (12, 40)], got [(12, 40), (12, 40)]"),
    (backward(lambda gradients: [gradients[0].T, gradients[1]]), "got [(12, 40), (40, 12), (12, 40)]"),
    (lambda right: right._replace(both=lambda douts, *inputs: (inputs[0], inputs)), "of the largest value"),
    (backward(lambda gradients: [g * (1 + 3e-6) for g in gradients]), "error must be at most"),
    (lambda right: right, None),
])
def test_the_judge(change, error):
    _, wrong = case.Judge(case.make_case("swiglu", "tiny")).verdict(changed(change))
    assert wrong is None if error is None else error in wrong


@pytest.mark.parametrize("kernel", list(peers.WORKLOADS))
def test_pytorchs_own_ops_pass_everywhere(kernel):
    """Truth, eager and the inputs of every workload agree in form."""
    judge = case.Judge(case.make_case(kernel, "tiny"))
    assert judge.verdict(peers.WORKLOADS[kernel].builders["eager"]())[1] is None


def test_wrong_and_failing_contenders_get_no_time(monkeypatch):
    """Nor do they stop the others."""
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")

    workload = peers.WORKLOADS["swiglu"]
    builders = {"ours": full, "eager": workload.builders["eager"], "liger": lambda: changed(backward(lambda gs: [2 * g for g in gs]))}
    monkeypatch.setitem(peers.WORKLOADS, "swiglu", workload._replace(builders=builders))
    lines = measured("swiglu", ["eager", "liger"])
    assert {line["provider"] for line in lines if "ms" in line} == {"eager"}
    ours, liger = (line for line in lines if "error" in line)
    assert ours["error"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB" and not ours["absent"]
    assert liger["provider"] == "liger" and "of the largest value" in liger["error"]


# ------------------------------------------------------------------------------------------------------------------------ the command

@INTERPRETED
def test_the_whole_command(tmp_path, monkeypatch, capsys):
    """On a made-up GPU, at the tiny shape: what it measures, what it writes, and its exit status."""
    path = tmp_path / "r.jsonl"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)   # it would look for the GPU
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: type("Properties", (), {"L2_cache_size": 0}))
    for name, fake in {"CudaTimer": FakeTimer, "interpreted": lambda: False, "measure_rates": lambda *a: (1e12, 1e14),
                       "gpu_state": dict, "plan": lambda *a: [("adamw", "tiny"), ("cross_entropy", "tiny"), ("step", "ours")]}.items():
        monkeypatch.setattr(bench, name, fake)
    monkeypatch.setattr(step, "measure", lambda *a: {"ms": {"p50": 9.0}})
    command = ["--peers", "eager", "--json", str(path)]
    assert bench.main(command) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["kernel"] == "machine" and lines[-1]["kernel"] == "step"
    assert {line["gpu"] for line in lines} == {"NVIDIA H200"}
    ours = {(line["kernel"], line["direction"]) for line in lines[1:-1] if line["provider"] == "ours"}
    assert ours == {(kernel, direction) for kernel in ("adamw", "cross_entropy") for direction in roofline.DIRECTIONS}
    assert len(capsys.readouterr().out.splitlines()) == len(lines)
    assert bench.main(command) == 2
    assert capsys.readouterr().err == f"error: --json must name a new file, got {path}, which exists\n"
    assert bench.main(["--minutes", "1e-9"]) == 0
    assert "stopped after 1e-09 minutes, before adamw at tiny: 0 of 3 done" in capsys.readouterr().err

    def fails(*arguments):
        raise ValueError("no luck")

    monkeypatch.setattr(step, "measure", fails)
    monkeypatch.setattr(bench, "plan", lambda *a: [("step", "ours")])
    assert bench.main([]) == 1
    assert "FAILED: ValueError: no luck" in capsys.readouterr().out


def test_the_order_of_work():
    order = bench.plan(bench.KERNELS, list(step.TRAINERS))
    assert order[0] == ("attention", "T=2k")
    assert len(order) == len(set(order)) == 5 + 8 + 5 + 7 + 8 + 8
    assert ("adamw", "1.3B") not in order
    assert order.index(("step", "ours")) < order.index(("rmsnorm", "1.3B"))
    assert bench.plan(["step"], ["ours", "eager"]) == [("step", "ours")]
    assert bench.plan(["rope"], []) == [("rope", "reference"), ("rope", "1.3B"), ("rope", "small"), ("rope", "odd")]


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["--only", "softmax"], f"--only must be some of {','.join(peers.WORKLOADS)},step, got 'softmax'"),
    (["--only", ""], f"--only must be some of {','.join(peers.WORKLOADS)},step, got ''"),
    (["--peers", "apex"], "--peers must be some of ours,eager,compile,"),
    (["--minutes", "0"], "--minutes must be a positive number, got 0.0"),
    (["--minutes", "soon"], "argument --minutes: invalid float value: 'soon'"),
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
    assert capsys.readouterr().err == "error: there is no CUDA GPU to measure on: --memory counts bytes, --render prints results\n"


# -------------------------------------------------------------------------------------------------------------------------- the table

def line(kernel="rmsnorm", **changes):
    common = {"time": "2026-01-02T03:04:05+00:00", "torch": "2.11.0", "triton": "3.6.0", "gpu": "NVIDIA H200", "kernel": kernel}
    if kernel == "machine":
        return common | {"copy_tbps": 4.3, "gemm_tflops": 700.0, "state": {"driver_version": "580"}} | changes
    return common | {"shape_name": "reference", "provider": "ours", "direction": "forward", "mode": "graph", "ratio": 1.0, "peak_mb": 100.0,
                     "ms": {"p20": 0.06, "p50": 0.07, "p80": 0.08}, "roofline_pct": 89.0} | changes


def gone(kernel, provider, absent):
    found = {name: value for name, value in line(kernel, provider=provider).items() if name not in ("direction", "mode", "ms")}
    return found | {"error": "why", "absent": absent}


def row(text, *starts):
    return next(found for found in text.splitlines() if found.startswith("| " + " | ".join(starts) + " |"))


def test_the_table_without_results():
    text = render([])
    for kernel, goal in table.GOALS.items():
        found = next(found for found in text.splitlines() if found.startswith(f"| {kernel}"))
        assert found.endswith(f"{'T=2k' if kernel == 'attention' else 'reference'} | {goal} |")
    assert text.startswith("No figure has been measured on a GPU yet") and MISSING not in text


def test_the_readme_shows_the_results_of_the_repository():
    """kernels/README.md is where --into writes without a FILE, and holds what it would write."""
    assert table.README == ROOT / "kernels" / "README.md" and table.RESULTS == ROOT / "kernels" / "results"
    assert table.README.read_text().split(BEGIN)[1].split(END)[0] == "\n" + render(table.read())


def test_the_table(tmp_path):
    """The newest line of each GPU counts, and what failed or is absent is said."""
    records = [
        line("machine"), line(ms={"p50": 1.5}, time="2025-01-01T00:00:00+00:00"), line(),
        line(direction="backward", ms={"p50": 0.111}, roofline_pct=85.2),
        line(provider="compile", ratio=1.049), line(provider="compile", direction="backward", ratio=1.2), gone("rmsnorm", "liger", True),
        line(mode="eager", direction="forward+backward", peak_mb=1234.4),
        line("cross_entropy", direction="forward+backward", roofline_pct=88.0),
        line("cross_entropy", direction="forward+backward", mode="eager", provider="liger", ratio=1.5),
        gone("swiglu", "compile", False), gone("swiglu", "eager", False), line("swiglu", provider="eager", ratio=3.0),
        line("attention", shape_name="T=2k", provider="cudnn", ratio=0.8), line("attention", shape_name="T=2k", roofline_pct=57.0),
        line("step", shape_name="1.3B", direction="forward+backward", mode="eager", batch=8, tokens_per_s=68123.0, peak_mb=2048.0,
             mfu={"causal": 0.57, "full": 0.61}, mfu_of_measured=0.8),
        line("machine", gpu="NVIDIA A100"), line(gpu="NVIDIA A100"),
    ]
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    a100, h200 = render(table.read([path])).split("**NVIDIA H200**")
    assert "**NVIDIA A100**" in a100
    assert "driver 580" in h200 and "copy, 4.30 TB/s" in h200 and "700 TFLOP/s" in h200
    assert row(h200, "rmsnorm", "reference") == (
        f"| rmsnorm | reference | 0.070 / 0.111 | 89 / 85 | 92 / 85 | 1.05 / 1.20 | {MISSING} | absent | 1,234 | {MISSING} |")
    assert "| 0.070 | 88 | 88 |" in row(h200, "cross_entropy (loss and gradient)", "reference")
    assert "| 1.50 |" in row(h200, "cross_entropy (loss and gradient)", "reference")
    assert "| failed | 3.00 / – |" in row(h200, "swiglu", "reference")
    assert "| 0.070 / – | 57 / – | 57 / 33 | cudnn: 0.80 / – |" in row(h200, "attention", "T=2k")
    assert row(h200, "ours, Triton attention") == "| ours, Triton attention | 8 | 68,123 | 57.0% / 61.0% | 80.0% | 2.0 |"
    assert row(h200, "rope", "reference").count(MISSING) == 7


def test_a_bad_line_is_named(tmp_path, capsys):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(line()) + "\n" + '{"half a li')
    assert bench.main(["--render", str(path)]) == 2
    assert capsys.readouterr().err == f"error: {path} line 2: a line must be JSON, got '{{\"half a li'\n"


def test_only_the_part_between_the_markers_is_replaced(tmp_path, capsys):
    readme, results = tmp_path / "README.md", tmp_path / "r.jsonl"
    readme.write_text(f"# title\n{BEGIN}\nold\n{END}\nend, no newline")
    results.write_text(json.dumps(line("machine")) + "\n")
    for _ in range(2):
        assert bench.main(["--render", str(results), "--into", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith(f"# title\n{BEGIN}\n**NVIDIA H200**") and text.endswith(f"\n{END}\nend, no newline")
    assert "old" not in text and text.count(BEGIN) == 1
    for text in ("no markers", f"{BEGIN}\n{BEGIN}\n{END}\n"):
        readme.write_text(text)
        assert bench.main(["--render", str(results), "--into", str(readme)]) == 2
        assert "must have one line" in capsys.readouterr().err and readme.read_text() == text


# --------------------------------------------------------------------------------------------------------------------- memory, training

def test_bytes_kept_for_backward(capsys):
    """The README's table is what --memory prints; ours is the sum in kernels/block.py, 6 D + 2 F elements and 4 H bytes."""
    assert bench.main(["--memory"]) == 0
    rows = capsys.readouterr().out
    assert rows in table.README.read_text()
    assert f"| {2 * (6 * 2048 + 2 * 5504) + 4 * 16:,} | {2 * (6 * 4096 + 2 * 11008) + 4 * 32:,} |" in rows
    assert memory.kept_by_reference(memory.MODELS[0], 32) == memory.kept_by_reference(memory.MODELS[0], 64)  # no square of scores


def test_kept_counts_storages_once():
    x, weight = torch.zeros(4, 8, requires_grad=True), torch.zeros(8, requires_grad=True)
    assert memory.kept_by_autograd(lambda: (x.view(8, 4) * 2).sin() + x[:2].cos().sum()) == 2 * 4 * 32  # 2x; x by its view of half
    assert memory.kept_by_autograd(lambda: x * weight, [weight]) == 4 * 32


def test_training_steps_are_counted_after_the_warm_up(monkeypatch):
    seen, ticks = [], iter(range(100))
    monkeypatch.setattr(step.time, "perf_counter", lambda: next(ticks) ** 2)
    times = step.train(lambda tokens, targets: seen.append((tokens.shape, targets.shape)), SMALL_MODEL, warmup=2, steps=3, batch=4)
    assert seen == [((4, 8), (4, 8))] * 5 and times == [9e3, 13e3, 17e3]  # the first two took 1 and 5 s


def test_trainers_of_peers_learn_the_same_thing():
    """The compiled peer (here without compiling) follows the engine of the same parameters step by step."""
    from kernels.engine import TorchEngine
    from kernels.model import Llama
    from minillama.config import TrainConfig

    config, device = SMALL_MODEL, torch.device("cpu")
    params = step.fresh_params(config, device)
    engine = TorchEngine(config, TrainConfig(seq_len=8), params, device="cpu", dtype="float32")
    model = Llama(config, "reference", params={name: torch.from_numpy(array.copy()) for name, array in params.items()})
    peer = step._trainer(model, model, device)
    tokens = torch.randint(0, config.vocab_size, (2, 9)).numpy()
    for _ in range(4):
        expected = engine.train_step([(tokens[:, :-1], tokens[:, 1:])], step.LR).loss
        assert peer(tokens[:, :-1], tokens[:, 1:]) == pytest.approx(expected, rel=1e-5)
    rounded = Llama(config, "reference", params={name: torch.from_numpy(array).bfloat16() for name, array in params.items()})
    before = rounded.output.detach().clone()
    step._trainer(rounded, rounded, device)(tokens[:, :-1], tokens[:, 1:])
    assert not torch.equal(rounded.output, before)               # the master weights come back
