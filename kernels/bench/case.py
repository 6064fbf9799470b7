"""One kernel at one shape: its contenders are verified, then timed in turns."""
import gc
import importlib
import math
import statistics
import sys
from contextlib import nullcontext
from typing import NamedTuple

import torch

from .. import roofline
from . import peers
from .clock import compete, paired_ratio, percentiles

FACTOR, EPS = 2.0, 2.0  # those of the tests: KERNEL_FACTOR and KERNEL_EPS in tests/tolerances.py
ROUNDS = 30
REPLAY_MS = 0.5  # a graph takes at least this long: the resolution of an event is 1/1000 of it
MAX_CALLS = 256  # most calls in a graph, unless there are more input sets
CAPTURED = ("ours", "eager", "compile")  # in graphs: another's code may wait for the device, and a failed capture costs all that follow
L2_CACHES = 4  # all input sets together fill so many L2 caches
MAX_VERIFIED = 2**20 + 3  # parameters of an optimiser that is verified: it treats all alike


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


class Case(NamedTuple):
    """One kernel at one shape."""

    kernel: str
    shape_name: str
    shape: dict
    dtype: torch.dtype
    device: torch.device
    workload: peers.Workload


def make_case(kernel, shape_name):
    workload, tiny = peers.WORKLOADS[kernel], shape_name == "tiny"
    shape = {letter: peers.SHAPES[shape_name][letter] for letter in workload.letters}
    dtype = torch.float32 if tiny or kernel == "adamw" else torch.bfloat16
    return Case(kernel, shape_name, shape, dtype, torch.device("cpu" if tiny else "cuda"), workload)


# ---------------------------------------------------------------------------------------------------------------- verified before timed

def _like(outputs, draw):
    """Random gradients of outputs; 1 of a loss."""
    return tuple(torch.ones_like(out) if out.ndim == 0 else draw.normal(*out.shape, dtype=out.dtype) for out in outputs)


class Judge:
    """Exact outputs and gradients of a case, and the errors of PyTorch in the case's dtype.

    "Exact" is plain PyTorch in float64, or in float32 for a big case of lower precision.
    """

    def __init__(self, case):
        self.case, truth = case, case.workload.truth
        self.shape = {letter: min(size, MAX_VERIFIED) if letter == "P" else size for letter, size in case.shape.items()}
        inputs = self._inputs()
        self.douts = _like(peers.listed(truth.forward(*truth.enter(inputs, ())[0])[0]), peers.Draw(case.device, case.dtype, seed=2))
        exact = torch.float64 if case.dtype == torch.float32 or sum(x.numel() for x in inputs) < 2**23 else torch.float32
        wider = [tuple(x.detach().to(exact) if x.is_floating_point() else x for x in group) for group in (inputs, self.douts)]
        self.exact = self._results(truth, *wider)
        self.reference = [self._error(x, y)[0] for x, y in zip(self._results(truth, self._inputs(), self.douts), self.exact, strict=True)]

    def _inputs(self):
        """The same numbers in the same layout each time, made again because some contenders overwrite them."""
        return self.case.workload.inputs(self.shape, peers.Draw(self.case.device, self.case.dtype, seed=1))

    @staticmethod
    def _results(*run):
        return [x.detach() for group in peers.run(*run) for x in group]

    @staticmethod
    def _error(found, exact):
        """(largest error, largest value); NaN stays NaN."""
        return (found.to(exact.dtype) - exact).abs().max().item(), exact.abs().max().item()

    def verdict(self, contender):
        """Judge a contender, twice if it has its own way for forward and backward together.

        Returns:
            (error relative to the largest value, sentence that says what is wrong or None), of the worst tensor
        """
        ways = (False, True) if contender.both else (False,)
        return max((self._one(contender, both) for both in ways), key=lambda verdict: verdict[1] is not None)

    def _one(self, contender, both):
        results = self._results(contender, self._inputs(), tuple(dout.clone() for dout in self.douts), both)
        shapes, expected = ([tuple(x.shape) for x in group] for group in (results, self.exact))
        if shapes != expected:
            return math.inf, f"outputs and gradients must have the shapes {expected}, got {shapes}"
        worst, verdict = -1.0, None
        for found, exact, reference in zip(results, self.exact, self.reference):
            error, scale = self._error(found, exact)
            allowed = FACTOR * reference + EPS * torch.finfo(self.case.dtype).eps * scale
            used = error / allowed if error > 0 else 0.0 if error == 0 else math.inf  # NaN is neither
            if used > worst:
                worst, unit = used, scale or 1.0
                wrong = f"error must be at most {allowed / unit:.3g} of the largest value, got {error / unit:.3g}"
                verdict = error / unit, None if error <= allowed else wrong
        return verdict


# ------------------------------------------------------------------------------------------------------------------------------- timed

def input_sets(case, l2_bytes):
    """A list of (inputs, douts), long enough that the inputs together fill L2_CACHES caches."""
    def one(seed):
        draw = peers.Draw(case.device, case.dtype, seed)
        inputs = case.workload.inputs(case.shape, draw)
        if case.kernel == "adamw":                               # its state is in the inputs, and it has no gradient of an output
            return inputs, ()
        with torch.no_grad():
            return inputs, _like(peers.listed(case.workload.truth.forward(*inputs)[0]), draw)

    sets = [one(10)]
    read = sets[0][0]
    size = sum(x.numel() * x.element_size() for x in read)
    if case.kernel == "embedding":                               # only the rows of the given ids are read
        size = case.shape["N"] * case.shape["D"] * read[1].element_size()
    return sets + [one(10 + i) for i in range(1, math.ceil(L2_CACHES * l2_bytes / size))]


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


def _no_donation():
    """Compiled backwards may overwrite what forward saved for them, and then they can run only once; here they run many times."""
    config = importlib.import_module("torch._functorch.config")
    return config.patch(donated_buffer=False) if hasattr(config, "donated_buffer") else nullcontext()


class Bench:
    """Measures cases. write: function of a dict, a line of the results; rates: (bytes/s, FLOP/s) of this machine."""

    def __init__(self, write, timer, rates, l2_bytes, rounds=ROUNDS):
        self.write, self.timer, self.rates, self.l2_bytes, self.rounds = write, timer, rates, l2_bytes, rounds

    def attempt(self, record, action):
        """action(), or None if it fails, after writing a line about the failure.

        Raises:
            RuntimeError: the GPU does not answer any more, because a kernel read or wrote outside its memory
        """
        try:
            return action()
        except Exception as error:
            failure = record | {"error": sentence(error), "absent": isinstance(error, ImportError)}
        self.write(failure)                                      # not inside except: there the error still holds the tensors of its frames
        self.timer.synchronize()
        free()
        return None

    def kernel(self, kernel, shape_name, providers):
        """Verify the contenders of a case, and time them in all directions."""
        case = make_case(kernel, shape_name)
        record = {"kernel": kernel, "shape_name": shape_name, "shape": case.shape, "dtype": str(case.dtype).removeprefix("torch."),
                  "provider": "ours"}
        torch.compiler.reset()                                   # it would stop compiling a function after eight shapes
        with _no_donation():
            if entrants := self.attempt(record, lambda: self.entrants(case, record, providers)):
                for direction in roofline.DIRECTIONS:
                    free()
                    self.attempt(record | {"direction": direction}, lambda direction=direction: self.direction(direction, entrants))

    def entrants(self, case, record, providers):
        """The contenders whose results are right: provider -> (its record, contender, its input sets)."""
        sets, judge, right = input_sets(case, self.l2_bytes), Judge(case), {}
        for provider, build in case.workload.builders.items():
            def prepare(build=build):
                contender = build()
                return contender, judge.verdict(contender), [contender.enter(*one) for one in sets]

            mine = record | {"provider": provider}
            if provider in ("ours", *providers) and (found := self.attempt(mine, prepare)):
                contender, (error, wrong), own = found
                if wrong:
                    self.write(mine | {"error": wrong, "absent": False})
                else:
                    right[provider] = mine | {"max_err": error}, contender, own
        return right

    def direction(self, direction, entrants):
        """Time one direction and write a line for each contender and mode. entrants: provider -> (record, contender, its input sets)."""
        calls, records = {}, {}
        for provider, (record, contender, own) in entrants.items():
            def prepare(contender=contender, own=own):
                made = calls_of(contender, direction, own)
                for call in made[:2]:                            # some compile only when they are called
                    call()
                return made, self.timer.peak_mb(made[0])

            if found := self.attempt(record | {"direction": direction}, prepare):
                calls[provider], peak = found
                records[provider] = record | {"direction": direction, "peak_mb": peak}
        eager = {p: (lambda number, made=made: made[number % len(made)]()) for p, made in calls.items()}
        times = {"eager": compete(eager, self.rounds, self.timer.alone)}
        captured = {p: self.capture(calls[p], statistics.median(times["eager"][p])) for p in calls if p in CAPTURED}
        replays = {p: (lambda number, replay=found[0]: replay()) for p, found in captured.items() if found}
        replayed = compete(replays, self.rounds, self.timer.queued)
        times["graph"] = {p: [ms / captured[p][1] for ms in found] for p, found in replayed.items()}
        for mode, found in times.items():
            for provider, ms in found.items():
                self.write(records[provider] | {"mode": mode} | self.figures(records[provider], ms, found.get("ours")))

    def capture(self, calls, ms):
        """(replay, number of calls in it), or None if the calls cannot be captured: then there are only eager times."""
        times = len(calls) * max(1, min(math.ceil(REPLAY_MS / (ms * len(calls))), MAX_CALLS // len(calls)))
        try:
            replay = self.timer.capture(calls, times)
            replay()
            self.timer.synchronize()
            return replay, times
        except Exception as error:
            print(f"  not captured: {sentence(error)}", file=sys.stderr)
        self.timer.synchronize()
        return None

    def figures(self, record, times, ours):
        """The fields that follow from a list of times in ms."""
        count = roofline.bytes_and_flops(record["kernel"], record["direction"], record["shape"], record["dtype"])
        ms, roofline_ms = percentiles(times), roofline.roofline_ms(count, *self.rates)
        return {"ms": ms, "n": len(times), "bytes": count[0], "flops": count[1], "roofline_ms": roofline_ms,
                "roofline_pct": 100 * roofline_ms / ms["p50"], "ratio": paired_ratio(times, ours) if ours else None}
