"""Every kernel timed beside its peers and its roofline: `python -m kernels.bench`.

Needs a CUDA GPU, except with --smoke, --memory or --render.

    kernels    every op but attention, at four shapes, forward, backward and both
    attention  at T = 1k to 16k, 16384 tokens
    step       a training step of a model of 1.3 billion parameters, and the bytes kept for backward

The machine is measured first: rooflines (roofline.py) are computed from its copy bandwidth and its rate on the model's own matrix
products. Then, for every case, all contenders (peers.py) run in this one process:

    verify   outputs and gradients are compared with float32 or float64; a contender whose error is more than twice PyTorch's in the same
             dtype is not timed
    graph    N calls in a CUDA graph: the time of the GPU alone. The calls rotate among input sets that together fill four L2 caches;
             otherwise each call would find its inputs in the cache
    eager    one call on an idle GPU, between two events: the work of the host counts too

Contenders take turns, A B C A B C, for ROUNDS rounds, so that a GPU that warms up slows all of them alike; ratios are taken within a
round. Only CAPTURED are captured; where a capture fails, there are only eager times. Memory is the peak of one call in addition to its
inputs.

Results are JSON lines (table.py has their fields), written as soon as they are known; --resume continues a run that was stopped.
"""
import argparse
import datetime
import gc
import importlib
import json
import math
import platform
import statistics
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from .. import roofline
from ..interpreter import interpreted
from . import peers, step, table
from .clock import (
    CudaTimer,
    HostTimer,
    clocks,
    compete,
    git_revision,
    gpu_state,
    measure_rates,
    paired_ratio,
    percentiles,
    version,
)
from .table import SCHEMA, check_record

SUITES = ("kernels", "attention", "step")
FACTOR, EPS = 2.0, 2.0  # those of the tests: KERNEL_FACTOR and KERNEL_EPS in tests/tolerances.py
ROUNDS = 30
REPLAY_MS = 0.5  # a graph takes at least this long: the resolution of an event is 1/1000 of it
MAX_CALLS = 256  # most calls in a graph, unless there are more input sets
CAPTURED = ("ours", "eager", "compile")  # in graphs: another's code may wait for the device, and a failed capture costs all that follow
L2_CACHES = 4  # all input sets together fill so many L2 caches
FULL, QUICK = (20, 50), (5, 15)  # (warm-up, timed) training steps: if --minutes is at least LONG, and if it is less
LONG = 15.0


# ------------------------------------------------------------------------------------------------------------------------- the output

class Lost(Exception):
    """The GPU does not answer any more: a kernel read or wrote outside its memory."""


class Results:
    """Writes every result twice: as a JSON line to a file, flushed immediately, and as a readable row to stdout."""

    def __init__(self, path, resume, smoke):
        self.file, self.done, self.smoke, self.rates, self.faults = None, set(), smoke, None, 0
        self.common = {"schema": SCHEMA, "smoke": smoke, "git": git_revision(), "torch": torch.__version__, "triton": version("triton"),
                       "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None}
        if path:
            if resume and Path(path).exists():
                self._recover(Path(path))
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self.file = open(path, "a" if resume else "w")      # noqa: SIM115 (closed by close())

    def _recover(self, path):
        """Note which results are there, and cut off an unfinished last line."""
        whole = path.read_text()
        kept = whole[:whole.rfind("\n") + 1]
        if kept != whole:
            path.write_text(kept)
        for line in kept.splitlines():
            record = json.loads(line)
            if record["smoke"] == self.smoke and record["gpu"] == self.common["gpu"] and record["kernel"] != "machine":
                self.done.add((record["kernel"], record["shape_name"], record["direction"], record["provider"]))

    def is_done(self, kernel, shape, direction, provider):
        return (kernel, shape, None, provider) in self.done or (kernel, shape, direction, provider) in self.done

    def write(self, record):
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        record = {"time": now} | self.common | record
        check_record(record)
        if self.file:
            self.file.write(json.dumps(record, allow_nan=False) + "\n")
            self.file.flush()
        if record["kernel"] != "machine":
            self.faults += record["provider"] == "ours" and not record["ok"]
            print(_row(record), flush=True)

    def close(self):
        if self.file:
            self.file.close()


def _row(record):
    names = (record[name] or "" for name in ("kernel", "shape_name", "direction", "mode", "provider"))
    what = " ".join(f"{name:<{width}}" for name, width in zip(names, (21, 10, 17, 6, 18)))
    if record["absent"]:
        return f"{what} absent: {record['error']}"
    if not record["ok"]:
        return f"{what} FAILED: {record['error']}"
    cells = [] if not record["ms"] else [f"{record['ms']['p50']:9.4f} ms"]
    for name, form in (("roofline_pct", "{:4.0f}% of roofline"), ("ratio", "{:5.2f} x ours"), ("peak_mb", "{:8.0f} MiB"),
                       ("tokens_per_s", "{:8.0f} tokens/s"), ("bytes_per_token_layer", "{:9.0f} B")):
        if record.get(name) is not None:
            cells.append(form.format(record[name]))
    return f"{what} {'  '.join(cells)}"


def blank(kernel, shape_name, shape, dtype, provider):
    """A record that has all its fields, but no results yet."""
    record = dict.fromkeys(table.fields(kernel).keys() - table.COMMON.keys())
    return record | {"kernel": kernel, "shape_name": shape_name, "shape": shape, "dtype": str(dtype).removeprefix("torch."),
                     "provider": provider, "clocks": None, "ok": False, "absent": False}


def sentence(error):
    """The type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


def free():
    """Free memory that nothing refers to. After a failed capture torch 2.11 cannot: its allocator takes the capture to be still underway
    (https://github.com/pytorch/pytorch/pull/180395). Then the memory stays cached, and the benchmark goes on."""
    gc.collect()
    try:
        torch.cuda.empty_cache()                                 # does nothing where there is no GPU
    except RuntimeError as error:
        if "captures_underway" not in str(error):
            raise


# ------------------------------------------------------------------------------------------------------------------------ one kernel

class Case(NamedTuple):
    """One kernel at one shape."""

    kernel: str
    shape_name: str
    shape: dict
    dtype: torch.dtype
    device: torch.device
    workload: peers.Workload


def make_case(kernel, shape_name, smoke):
    workload = peers.WORKLOADS[kernel]
    shape = (peers.ATTENTION_SHAPES if shape_name.startswith("T=") else peers.SHAPES)[shape_name]
    dtype = torch.float32 if smoke or kernel == "adamw" else torch.bfloat16
    return Case(kernel, shape_name, {letter: shape[letter] for letter in workload.letters}, dtype,
                torch.device("cpu" if smoke else "cuda"), workload)


def _like(outputs, draw):
    """Random gradients of outputs; 1 of a loss."""
    return tuple(torch.ones_like(out) if out.ndim == 0 else draw.normal(*out.shape, dtype=out.dtype) for out in outputs)


def _wider(tensors, dtype):
    return tuple(x.detach().to(dtype) if x.is_floating_point() else x for x in tensors)


def _error(found, exact):
    """(largest error, largest value); NaN stays NaN."""
    return (found.detach().to(exact.dtype) - exact).abs().max().item(), exact.abs().max().item()


class Verdict(NamedTuple):
    """Errors, relative to the largest value, of the tensor whose error is the largest part of what is allowed."""

    max_err: float
    oracle_err: float
    error: str | None


class Judge:
    """Exact outputs and gradients of a case, and the errors of PyTorch in the case's dtype.

    "Exact" is plain PyTorch in float64, or in float32 for a big case of lower precision.
    """

    def __init__(self, case):
        self.case, self.shape = case, case.shape | (case.workload.proof or {})
        inputs, plain = self._inputs(), case.workload.truth()
        outputs, _ = plain.forward(*plain.enter(inputs, ())[0])
        self.douts = _like(peers.listed(outputs), peers.Draw(case.device, case.dtype, seed=2))
        del outputs
        size = sum(x.numel() for x in inputs)
        exact = torch.float64 if case.dtype == torch.float32 or size < 2**23 else torch.float32
        self.exact = self._detached(peers.run(plain, _wider(inputs, exact), _wider(self.douts, exact)))
        reference = self._detached(peers.run(plain, self._inputs(), self.douts))
        self.reference = [_error(x, truth)[0] for x, truth in zip(reference, self.exact, strict=True)]

    def _inputs(self):
        """The same numbers in the same layout each time, made again because some contenders overwrite them."""
        return self.case.workload.inputs(self.shape, peers.Draw(self.case.device, self.case.dtype, seed=1))

    @staticmethod
    def _detached(results):
        return [x.detach() for group in results for x in group]

    def verdict(self, contender):
        """Judge a contender, twice if it has its own way for forward and backward together. Returns the worse Verdict."""
        ways = (False, True) if contender.both else (False,)
        return max((self._one(contender, both) for both in ways), key=lambda verdict: verdict.error is not None)

    def _one(self, contender, both):
        douts = tuple(dout.clone() for dout in self.douts)
        results = self._detached(peers.run(contender, self._inputs(), douts, both))
        if len(results) != len(self.exact):
            return Verdict(math.inf, 0.0, f"must give {len(self.exact)} outputs and gradients, got {len(results)}")
        worst, verdict = -1.0, None
        for found, exact, reference in zip(results, self.exact, self.reference):
            if found.shape != exact.shape:
                return Verdict(math.inf, 0.0, f"must give shape {tuple(exact.shape)}, got {tuple(found.shape)}")
            error, scale = _error(found, exact)
            allowed = FACTOR * reference + EPS * torch.finfo(self.case.dtype).eps * scale
            used = error / allowed if error > 0 else 0.0 if error == 0 else math.inf  # NaN is neither
            if used > worst:
                worst, unit = used, scale or 1.0
                wrong = f"error must be at most {allowed / unit:.3g} of the largest value, got {error / unit:.3g}"
                verdict = Verdict(error / unit, reference / unit, None if error <= allowed else wrong)
        return verdict


def input_sets(case, l2_bytes):
    """A list of (inputs, douts), long enough that the inputs together fill L2_CACHES caches."""
    def one(seed):
        draw = peers.Draw(case.device, case.dtype, seed)
        return case.workload.inputs(case.shape, draw), draw

    first, draw = one(10)
    size = sum(x.numel() * x.element_size() for x in first)
    if case.kernel == "embedding":                               # only the rows of the given ids are read
        size = case.shape["N"] * case.shape["D"] * first[1].element_size()
    count = max(1, math.ceil(L2_CACHES * l2_bytes / size))
    plain = case.workload.truth()
    if case.kernel == "adamw":                                   # its state is in the inputs, and it has no gradient of an output
        return [(first, ())] + [(one(10 + i)[0], ()) for i in range(1, count)]
    with torch.no_grad():
        outputs = peers.listed(plain.forward(*first)[0])
    sets = [(first, _like(outputs, draw))]
    for i in range(1, count):
        inputs, draw = one(10 + i)
        sets.append((inputs, _like(outputs, draw)))
    return sets


def calls_of(contender, direction, sets):
    """The functions to be timed, one for each input set. What backward needs from forward is computed here, untimed."""
    def both(inputs, douts):
        if contender.both:
            return contender.both(douts, *inputs)
        out, cache = contender.forward(*inputs)
        return out, contender.backward(douts, cache)

    if direction == "backward":
        states = [(douts, contender.forward(*inputs)[1]) for inputs, douts in sets]
        return [lambda state=state: contender.backward(*state) for state in states]
    if direction == "forward":
        return [lambda inputs=inputs: contender.forward(*inputs) for inputs, _ in sets]
    return [lambda pair=pair: both(*pair) for pair in sets]


class Bench:
    """Measures cases and writes their lines."""

    def __init__(self, results, timer, rates, rounds, l2_bytes):
        self.results, self.timer, self.rates, self.rounds, self.l2_bytes = results, timer, rates, rounds, l2_bytes

    def guard(self, record, action):
        """action(), or None if it fails, after writing a line about the failure. Raises Lost if the GPU does not survive it."""
        try:
            return action()
        except Lost:
            raise
        except ImportError as error:
            failure = record | {"absent": record["provider"] != "ours", "error": sentence(error)}
        except Exception as error:
            failure = record | {"error": sentence(error)}
        self.results.write(failure)
        free_failed = None
        try:
            self.timer.synchronize()
            free()
        except Exception as error:
            free_failed = sentence(error)
        if free_failed:
            raise Lost(free_failed)
        return None

    def kernel(self, case, providers):
        """All contenders of a case, all directions."""
        torch.compiler.reset()                                   # it would stop compiling a function after eight shapes
        wanted = [p for p in case.workload.builders if p in providers
                  and not all(self.results.is_done(case.kernel, case.shape_name, d, p) for d in roofline.DIRECTIONS)]
        if not wanted:
            return
        wanted = [p for p in case.workload.builders if p == "ours" or p in wanted]
        empty = {p: blank(case.kernel, case.shape_name, case.shape, case.dtype, p) for p in wanted}
        contenders, verdicts = self.verified(case, wanted, empty)
        free()
        sets = input_sets(case, self.l2_bytes)
        entered = {}
        for provider, contender in contenders.items():
            own = self.guard(empty[provider], lambda contender=contender: [contender.enter(*one) for one in sets])
            entered |= {provider: own} if own else {}
        for direction in roofline.DIRECTIONS:
            self.direction(case, direction, {p: contenders[p] for p in entered}, entered, verdicts, empty)
            free()

    def verified(self, case, wanted, empty):
        """Build and judge the contenders. Returns the right ones, provider -> Contender, and their Verdicts."""
        judge, contenders, verdicts = Judge(case), {}, {}
        for provider in wanted:
            if self.results.is_done(case.kernel, case.shape_name, None, provider):
                continue

            def examine(provider=provider):
                contender = case.workload.builders[provider]()
                return contender, judge.verdict(contender)

            if found := self.guard(empty[provider], examine):
                contender, verdict = found
                if verdict.error:
                    errors = {name: value if math.isfinite(value) else None for name, value in
                              (("max_err", verdict.max_err), ("oracle_err", verdict.oracle_err))}
                    self.results.write(empty[provider] | errors | {"error": verdict.error})
                else:
                    contenders[provider], verdicts[provider] = contender, verdict
        return contenders, verdicts

    def direction(self, case, direction, contenders, entered, verdicts, empty):
        """Time one direction and write a line for each contender and mode."""
        calls, peak, graphs = {}, {}, {}
        for provider, contender in contenders.items():
            if provider != "ours" and self.results.is_done(case.kernel, case.shape_name, direction, provider):
                continue

            def prepare(provider=provider, contender=contender):
                made = calls_of(contender, direction, entered[provider])
                for call in made[:2]:                            # some compile only when they are called
                    call()
                return made, self.timer.peak_mb(made[0])

            if found := self.guard(empty[provider] | {"direction": direction}, prepare):
                calls[provider], peak[provider] = found
        eager = {p: (lambda number, made=made: made[number % len(made)]()) for p, made in calls.items()}
        times = compete(eager, self.rounds, self.timer.alone) if eager else {}
        if self.timer.captures:
            for provider in [p for p in calls if p in CAPTURED]:
                graphs[provider] = self.capture(calls[provider], statistics.median(times[provider]))
            graphs = {provider: found for provider, found in graphs.items() if found}
        replays = {p: (lambda number, replay=replay: replay()) for p, (replay, _) in graphs.items()}
        replayed = compete(replays, self.rounds, self.timer.queued) if replays else {}
        replayed = {p: [ms / graphs[p][1] for ms in found] for p, found in replayed.items()}
        now = None if self.results.smoke else clocks(age=5)
        for provider in calls:
            if provider == "ours" and self.results.is_done(case.kernel, case.shape_name, direction, "ours"):
                continue                                         # it ran only for the ratios of the others
            verdict = verdicts[provider]
            for mode, found in (("graph", replayed), ("eager", times)):
                if provider in found:
                    record = empty[provider] | {"direction": direction, "mode": mode, "clocks": now, "ok": True,
                                                "peak_mb": peak[provider], "max_err": verdict.max_err, "oracle_err": verdict.oracle_err}
                    self.results.write(record | self.figures(record, found[provider], found.get("ours")))

    def capture(self, calls, ms):
        """(replay, number of calls in it), or None if the calls cannot be captured: then there are only eager times."""
        times = len(calls) * max(1, min(math.ceil(REPLAY_MS / (ms * len(calls))), MAX_CALLS // len(calls)))
        try:
            replay = self.timer.capture(calls, times)
            replay()
            self.timer.synchronize()
        except Exception as error:
            print(f"  not captured: {sentence(error)}", file=sys.stderr)
            try:
                self.timer.synchronize()
            except Exception as lost:
                raise Lost(sentence(lost)) from None
            return None
        return replay, times

    def figures(self, record, times, ours):
        """The fields that follow from a list of times in ms."""
        count = roofline.bytes_and_flops(record["kernel"], record["direction"], record["shape"], record["dtype"])
        ms = percentiles(times)
        seconds = ms["p50"] / 1e3
        roofline_ms = roofline.roofline_ms(count, self.rates["copy"], self.rates["gemm"]) if self.rates else None
        return {"ms": ms, "n": len(times), "bytes": count[0], "flops": count[1], "roofline_ms": roofline_ms,
                "roofline_pct": 100 * roofline_ms / ms["p50"] if roofline_ms else None, "fixed_roofline_ms": roofline.roofline_ms(count),
                "tbps": count[0] / seconds / 1e12, "tflops": count[1] / seconds / 1e12,
                "ratio": paired_ratio(times, ours) if ours else None}

    # ----------------------------------------------------------------------------------------------------------------- the whole model

    def _empty_step(self, kernel, config, seq_len, provider):
        shape = {"L": config.n_layers, "D": config.dim, "F": config.hidden_dim, "H": config.n_heads, "V": config.vocab_size, "T": seq_len}
        name, dtype = ("smoke", torch.float32) if self.results.smoke else ("1.3B", torch.bfloat16)
        return blank(kernel, name, shape, dtype, provider), dtype

    def kept(self, config, seq_len, device):
        """Write a line per provider about the bytes kept for backward. Returns provider -> bytes per token and layer."""
        found = {}
        for provider, count in step.KEPT.items():
            empty, dtype = self._empty_step("kept", config, seq_len, provider)
            found[provider] = self.guard(empty, lambda count=count, dtype=dtype: count(config, seq_len, dtype=dtype, device=device))
            if found[provider] and not self.results.is_done("kept", empty["shape_name"], None, provider):
                self.results.write(empty | {"ok": True, "bytes_per_token_layer": found[provider]})
        return found

    def step(self, provider, config, seq_len, device, batches, warmup, steps):
        """Train for some steps and write the line about them."""
        empty, dtype = self._empty_step("step", config, seq_len, provider)
        if self.results.is_done("step", empty["shape_name"], "forward+backward", provider):
            return
        torch.compiler.reset()

        def measured():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            trainer = step.TRAINERS[provider](config, device, dtype)
            batch, times = step.train(trainer, config, seq_len, batches, warmup, steps)
            return batch, times, torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None

        if found := self.guard(empty, measured):
            batch, times, peak = found
            ms, per_token, tokens = percentiles(times), roofline.step_flops(config, seq_len), batch * seq_len
            rate = tokens / ms["p50"] * 1e3
            mfu = {count: rate * flops / roofline.PEAK for count, flops in per_token.items()}
            for count, flops in per_token.items():
                mfu[f"{count}_of_measured"] = rate * flops / self.rates["gemm"] if self.rates else None
            roofline_ms = 1e3 * tokens * per_token["causal"] / self.rates["gemm"] if self.rates else None
            self.results.write(empty | {
                "direction": "forward+backward", "mode": "eager", "ok": True, "clocks": None if self.results.smoke else clocks(), "ms": ms,
                "n": len(times), "flops": tokens * per_token["causal"], "roofline_ms": roofline_ms,
                "roofline_pct": 100 * roofline_ms / ms["p50"] if roofline_ms else None,
                "fixed_roofline_ms": 1e3 * tokens * per_token["causal"] / roofline.MATMUL, "tflops": rate * per_token["causal"] / 1e12,
                "peak_mb": peak, "batch": batch, "tokens_per_s": rate, "mfu": mfu,
            })
        free()


# ----------------------------------------------------------------------------------------------------------------------- the command

def plan(suites, only, smoke):
    """What to measure, the most valuable first: a list of (kernel, shape name), or ("step", None) for the model."""
    if smoke:
        order = [(kernel, "smoke") for kernel in peers.WORKLOADS] + [("step", None)]
    else:
        ops = [kernel for kernel in peers.WORKLOADS if kernel != "attention"]
        order = [("attention", "T=2k"), *((kernel, "reference") for kernel in ops), ("step", None)]
        order += [("attention", f"T={T}k") for T in (8, 4, 16, 1)]
        order += [(kernel, shape) for shape in ("1.3B", "small", "odd") for kernel in ops
                  if peers.SHAPES[shape].keys() >= set(peers.WORKLOADS[kernel].letters)]

    def suite(kernel):
        return kernel if kernel in ("attention", "step") else "kernels"

    return [(kernel, shape) for kernel, shape in order if suite(kernel) in suites and (not only or kernel in only)]


class Usage(Exception):
    """A flag whose value is not allowed, or that does not go with the others."""


def _listed(flag, text, allowed):
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    for name in chosen:
        if name not in allowed:
            raise Usage(f"{flag} must be some of {','.join(allowed)}, got {name!r}")
    if not chosen:
        raise Usage(f"{flag} must be some of {','.join(allowed)}, got none")
    return chosen


def print_memory():
    """Print the bytes that each layer keeps for backward, as a formula and for two sizes."""
    wide = step.ModelConfig(dim=4096, n_layers=1, n_heads=32, vocab_size=32000)
    print("Bytes kept for backward per token and layer, bfloat16. Weights are not counted, and shared memory is counted once.")
    print("  ours            the cache of kernels.block.block_forward, counted at full size on tensors without memory")
    print("  eager           plain PyTorch under autograd")
    print("  huggingface     a layer of transformers' Llama")
    print("eager and huggingface run on the processor at seven small shapes, where hooks count the saved tensors. One formula fits all")
    print("seven, and gives the sizes below. On CUDA, PyTorch's ops may keep other tensors: --suite step counts there.")
    for provider, count in step.KEPT.items():
        try:
            if provider == "ours":
                sizes, formula = [count(config, 2048) for config in (wide, step.MODEL)], ""
            else:
                fit = step.fitted(count, torch.bfloat16)
                sizes = [step.at(fit, config, 2048) for config in (wide, step.MODEL)]
                formula = " = " + " + ".join(f"{factor:g}{'' if name == '1' else ' ' + name}" for name, factor in fit.items() if factor)
        except ImportError as error:
            print(f"{provider:<14} absent: {sentence(error)}")
            continue
        print(f"{provider:<14} {sizes[0]:>9,.0f} at D=4096 F=11008 H=32   {sizes[1]:>9,.0f} at D=2048 F=5504 H=16{formula}")


def parse(argv):
    """The command line. Raises Usage."""
    class Parser(argparse.ArgumentParser):
        def error(self, message):
            raise Usage(message)

    parser = Parser(prog="python -m kernels.bench", description="Time every kernel beside its peers and its roofline, on a CUDA GPU.")
    parser.add_argument("--suite", default=",".join(SUITES), metavar="LIST",
                        help=f"what to measure: some of {','.join(SUITES)} (default: all)")
    parser.add_argument("--only", metavar="LIST", help=f"only these kernels: some of {','.join(peers.WORKLOADS)},step")
    parser.add_argument("--peers", metavar="LIST", help="contenders beside ours (default: all except " + ",".join(peers.OPTIONAL) + ")")
    parser.add_argument("--json", metavar="FILE", help="write JSON lines to FILE; --render finds files in kernels/results/")
    parser.add_argument("--resume", action="store_true", help="keep the lines that the file of --json has, and measure the rest")
    parser.add_argument("--minutes", type=float, default=8.0, metavar="N", help="start no new measurement after N minutes (default: 8)")
    parser.add_argument("--smoke", action="store_true", help="test this program: tiny shapes on the CPU, in Triton's interpreter")
    parser.add_argument("--memory", action="store_true", help="only count the bytes kept for backward (needs no GPU)")
    parser.add_argument("--render", nargs="*", metavar="FILE", help="only print the table of these files (default: kernels/results/*)")
    parser.add_argument("--into", nargs="?", const=table.README, metavar="FILE",
                        help="with --render: write the table between the two markers of FILE (default: kernels/README.md)")
    arguments = parser.parse_args(argv)
    arguments.suite = _listed("--suite", arguments.suite, SUITES)
    arguments.only = _listed("--only", arguments.only, (*peers.WORKLOADS, "step")) if arguments.only is not None else None
    known = list(dict.fromkeys([*peers.PROVIDERS, *step.TRAINERS]))
    chosen = [p for p in known if p not in peers.OPTIONAL]
    arguments.peers = ["ours", *_listed("--peers", arguments.peers, known)] if arguments.peers is not None else chosen
    if not (arguments.minutes > 0 and math.isfinite(arguments.minutes)):
        raise Usage(f"--minutes must be a positive number, got {arguments.minutes}")
    if arguments.resume and not arguments.json:
        raise Usage("--resume needs --json FILE, the file to continue")
    if arguments.into and arguments.render is None:
        raise Usage("--into needs --render")
    if arguments.json and not arguments.resume and Path(arguments.json).exists():
        raise Usage(f"--json must name a new file, got {arguments.json}, which exists: add --resume to continue it")
    if not (arguments.memory or arguments.render is not None):
        if arguments.smoke and not interpreted():
            raise Usage("--smoke runs the kernels in Triton's interpreter: set TRITON_INTERPRET=1")
        if not arguments.smoke and not torch.cuda.is_available():
            raise Usage("there is no CUDA GPU to measure on: --smoke tests this program, --memory counts bytes, --render prints results")
        if not arguments.smoke and interpreted():
            raise Usage("TRITON_INTERPRET must not be set, got 1: times of the interpreter mean nothing")
    return arguments


def measure(arguments):
    """Run the plan. Returns the exit status: 1 if one of ours failed or the GPU was lost."""
    started, smoke = time.monotonic(), arguments.smoke
    results = Results(arguments.json, arguments.resume, smoke)
    timer = HostTimer() if smoke else CudaTimer()
    properties = None if smoke else torch.cuda.get_device_properties(0)
    l2_bytes = 0 if smoke else getattr(properties, "L2_cache_size", 0) or 50 * 2**20
    device = torch.device("cpu" if smoke else "cuda")
    warmup, steps = (1, 2) if smoke else FULL if arguments.minutes >= LONG else QUICK
    todo, status = plan(arguments.suite, arguments.only, smoke), 0
    machine = {"kernel": "machine", "python": platform.python_version(), "cuda": torch.version.cuda,
               "driver": None if smoke else gpu_state()["driver"],
               "multiprocessors": getattr(properties, "multi_processor_count", None),
               "memory_gb": properties.total_memory / 1e9 if properties else None,
               "l2_mb": l2_bytes / 2**20 if properties else None}
    try:
        with timer.session():
            before = None if smoke else clocks()
            rates = None if smoke else measure_rates(timer, step.MODEL)
            machine |= {"copy_tbps": rates and rates["copy"] / 1e12, "triad_tbps": rates and rates["triad"] / 1e12,
                        "gemm_tflops": rates and rates["gemm"] / 1e12, "square_gemm_tflops": rates and rates["square"] / 1e12,
                        "gemms": rates["gemms"] if rates else []}
            results.write(machine | {"when": "before", "clocks": before})
            if rates:
                print(f"{results.common['gpu']}: copy {machine['copy_tbps']:.2f} TB/s, triad {machine['triad_tbps']:.2f} TB/s, "
                      f"the 1.3B model's products {machine['gemm_tflops']:.0f} TFLOP/s, 8192^3 {machine['square_gemm_tflops']:.0f}")
            bench = Bench(results, timer, rates, 2 if smoke else ROUNDS, l2_bytes)
            free()
            gc.freeze()                                          # every capture collects garbage: skip the objects that stay anyway
            work = [unit for kernel, shape in todo for unit in _units(bench, kernel, shape, arguments, device, warmup, steps)]
            for number, (name, unit) in enumerate(work):
                if time.monotonic() - started > 60 * arguments.minutes:
                    print(f"stopped after {arguments.minutes:g} minutes, before {name}: {number} of {len(work)} done; "
                          "continue with --resume", file=sys.stderr)
                    break
                unit()
                free()
            results.write(machine | {"when": "after", "clocks": None if smoke else clocks()})
    except Lost as error:
        print(f"error: the GPU no longer answers this process after the last failure ({error}): continue with --resume, "
              "which skips that one", file=sys.stderr)
        status = 1
    finally:
        results.close()
    return 1 if results.faults else status


def _units(bench, kernel, shape, arguments, device, warmup, steps):
    """(name, function) for each part of the plan; the time limit is checked before each of them."""
    if kernel != "step":
        def measure_kernel():
            providers = [p for p in arguments.peers if not (bench.results.smoke and p not in ("ours", "ours-autograd", "eager"))]
            case = make_case(kernel, shape, bench.results.smoke)
            with _no_donation():
                bench.guard(blank(kernel, shape, case.shape, case.dtype, "ours"), lambda: bench.kernel(case, providers))

        return [(f"{kernel} at {shape}", measure_kernel)]
    config = step.SMOKE_MODEL if bench.results.smoke else step.MODEL
    seq_len, kept = config.max_seq_len, {}

    def count():
        kept.update(bench.kept(config, seq_len, device))

    def train(provider):
        if device.type == "cpu":
            return bench.step(provider, config, seq_len, device, [1], warmup, steps)
        memory = torch.cuda.get_device_properties(device).total_memory
        per_layer = kept.get(step.ALIKE[provider]) or kept.get("eager") or 0
        batches = step.batches_that_may_fit(config, seq_len, memory, per_layer)
        return bench.step(provider, config, seq_len, device, batches, warmup, steps)

    trainers = [p for p in step.TRAINERS if p in arguments.peers]
    if bench.results.smoke:
        trainers = [p for p in trainers if p in ("ours", "huggingface")]
    return [("the bytes kept for backward", count), *((f"the training step of {p}", partial(train, p)) for p in trainers)]


def _no_donation():
    """Compiled backwards may overwrite what forward saved for them, and then they can run only once; here they run many times."""
    config = importlib.import_module("torch._functorch.config")
    return config.patch(donated_buffer=False) if hasattr(config, "donated_buffer") else nullcontext()


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
    except (Usage, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.memory:
        print_memory()
        return 0
    return measure(arguments)


if __name__ == "__main__":
    sys.exit(main())
