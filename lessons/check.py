"""Checks that name the mistake: a learner's function against the right one, and against the known ways to get it wrong.

    check("03.rmsnorm_backward", f)               says what is wrong, with one number to compute again
    check("03.rmsnorm_backward", f, hint=True)    shows the line of the solution that was meant
    case("03.rmsnorm_backward")                   the arguments the number belongs to

Each output is asked by itself, on two draws of the inputs, which must agree:

1. Is it what a known mistake gives, or two at once?  A mistake is an edit of the solution's own source, so that two edits compose.
2. Is it the equation's own terms with other factors?  dx = c1 A + c2 B by least squares finds every dropped term, wrong sign and
   wrong factor that nobody thought of.
3. Else: what does it look like (shape, type, transposed, shifted, another order of channels, a factor that depends on one axis)?

A name is given only where both draws agree; otherwise the check says that it does not know.

What is judged is the learner's own object, called on copies, in a thread with a time limit and with its output caught. Whatever
it does, the check answers in a sentence and returns.
"""
import contextlib
import copy
import ctypes
import functools
import importlib
import inspect
import io
import itertools
import re
import textwrap
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

SAME = 1e-9  # of the largest value: two ways to compute one float64 number; another mistake is 1e-6 away or more
SECONDS = 2.0  # for all calls of the learner's function together; the right one takes a thousandth of that
MODULES = {path.stem[:2]: path.stem[3:] for path in sorted((Path(__file__).parent / "src").glob("[0-9]*.py"))}  # "03": "rmsnorm"


class Mistake(NamedTuple):
    """A wrong turn.

    key:     a short name, the same in every language
    right:   a piece of the solution's source, or several
    wrong:   what stands there instead
    says:    ends the sentence "dx is what comes out if ..."; quotes the equation
    planted: its name in tests/nn/planted_bugs.py, where it is one of the wrong gradients the project's own tests must reject
    """

    key: str
    right: str | tuple
    wrong: str | tuple
    says: str
    planted: str = ""

    @property
    def edits(self):
        return ((self.right, self.wrong),) if isinstance(self.right, str) else tuple(zip(self.right, self.wrong, strict=True))


class Exercise(NamedTuple):
    """One function to write.

    solution: the right one, shown in the solved notebook; its signature and docstring are the stub
    outputs:  names of what it returns
    inputs:   rng -> tuple of arguments, so drawn that no mistake can hide (gains not 1, ids repeated, T != Dh)
    mistakes: tuple of Mistake
    terms:    arguments -> {output: {label: (array, the factor it must have)}}, the terms of the equation
    same:     relative difference up to which two numbers are the same
    """

    solution: Callable
    outputs: tuple
    inputs: Callable
    mistakes: tuple
    terms: Callable = lambda *arguments: {}
    same: float = SAME


class Verdict(NamedTuple):
    """What was found. `problems` is empty for a right attempt.

    problems: list of sentences
    known:    dict output -> tuple of Mistake keys, where a known mistake, or two at once, explain it
    hints:    list of lines of the solution to look at
    notes:    list of sentences that fault nothing
    written:  False for an untouched stub
    """

    problems: list
    known: dict
    hints: list
    notes: tuple = ()
    written: bool = True

    @property
    def passed(self):
        return self.written and not self.problems


# ---- what a notebook calls ----
def check(name, attempt, hint=False):
    """Judge a function and print what was found. Never raises for anything that `attempt` is or does."""
    exercise = find(name)
    if exercise is None:
        print(f"✗ no exercise is called {name!r}; this lesson has {', '.join(names(str(name)[:2])) or 'none'}")
        return
    print(format_verdict(name, exercise, judge(exercise, attempt), hint))


def case(name):
    """The arguments of a check's first call: the numbers that its sentences speak of. A fresh copy every time."""
    exercise = find(name)
    if exercise is None:
        raise KeyError(f"no exercise is called {name!r}")
    return _copies(draws(exercise)[0])


@functools.cache
def find(name):
    """The Exercise of that name, or None."""
    module = MODULES.get(str(name)[:2])
    return importlib.import_module(f"lessons.checks.{module}").EXERCISES.get(name) if module else None


def names(lesson):
    """The names of a lesson's exercises."""
    return list(importlib.import_module(f"lessons.checks.{MODULES[lesson]}").EXERCISES) if lesson in MODULES else []


def format_verdict(name, exercise, verdict, hint=False):
    """A Verdict as text."""
    if not verdict.written:
        return f"… {name}: not written yet. Replace `raise NotImplementedError` by your code, run the cell, and the check tells."
    notes = [f"  {note}" for note in verdict.notes]
    if verdict.passed:
        return "\n".join([f"✓ {name}: {' and '.join(exercise.outputs)} {'is' if len(exercise.outputs) == 1 else 'are'} right", *notes])
    lines = [f"✗ {name}", *(f"  {problem}" for problem in verdict.problems), *notes]
    if hint and verdict.hints:
        lines += ["  In the solution the line is:", *(f"      {line}" for line in verdict.hints)]
    elif hint:
        lines += ["  No line of the solution explains this; compare step by step with the numbers of case(...)."]
    elif verdict.known or verdict.hints:
        lines += [f'  The inputs: case("{name}"). The line that was meant: check("{name}", ..., hint=True).']
    return "\n".join(lines)


# ---- the known mistakes ----
def source_of(exercise):
    """The solution's source, and without its docstring, in which no edit must be looked for."""
    return _source(exercise.solution)


@functools.cache
def _source(solution):
    source = textwrap.dedent(inspect.getsource(solution))
    return re.sub(r'\n *""".*?"""', "", source, count=1, flags=re.DOTALL)


def with_mistakes(exercise, mistakes):
    """The solution with pieces of its source written wrongly; None where two edits want the same piece."""
    source = source_of(exercise)
    for right, wrong in itertools.chain.from_iterable(mistake.edits for mistake in mistakes):
        if source.count(right) != 1:
            return None
        source = source.replace(right, wrong)
    scope = dict(exercise.solution.__globals__)
    exec(source, scope)  # our own source, never the learner's
    return scope[exercise.solution.__name__]


@functools.cache
def draws(exercise):
    """Two draws of the arguments."""
    return tuple(exercise.inputs(np.random.default_rng(seed)) for seed in (1, 2))


def _answers(exercise, function):
    """The function's outputs on both draws, float64 tuples; None where it cannot be computed."""
    try:
        with np.errstate(all="ignore"):
            results = [function(*_copies(arguments)) for arguments in draws(exercise)]
        return tuple(tuple(np.asarray(part, float) for part in (r if isinstance(r, tuple) else (r,))) for r in results)
    except Exception:                                            # an edit that fits no shape explains nothing
        return None


@functools.cache
def solved(exercise):
    """The right outputs on both draws."""
    return _answers(exercise, exercise.solution)


@functools.cache
def explanations(exercise):
    """(mistakes, outputs on both draws) for every known mistake, then for every two of them."""
    found = []
    for size in (1, 2):
        for group in itertools.combinations(exercise.mistakes, size):
            function = with_mistakes(exercise, group)
            answers = function and _answers(exercise, function)
            if answers and all(len(a) == len(exercise.outputs) for a in answers):
                found.append((group, answers))
    return found


# ---- the learner's function ----
def judge(exercise, attempt):
    """Call an attempt and find out what is wrong with it: Verdict."""
    bad = _not_a_function(exercise, attempt)
    if bad:
        return Verdict([bad], {}, [])
    arguments = draws(exercise)
    calls = [_copies(a) for a in (arguments[0], arguments[1], arguments[0])]
    results, error, printed = _call_in_time(attempt, calls)
    notes = ("What it prints is not shown here: call it yourself on case(...) to see it.",) if printed else ()
    if isinstance(error, NotImplementedError):
        return Verdict([], {}, [], written=False)
    if error is not None:
        return Verdict([_say_error(error, attempt)], {}, [], notes)
    if any(result is Ellipsis or result is NotImplemented for result in results):
        return Verdict([], {}, [], written=False)
    parts = [_parts(exercise, result) for result in results]
    wrong = next((p for p in parts if isinstance(p, str)), None)
    if wrong:
        return Verdict([wrong], {}, [], notes)
    changed = _changed(exercise, arguments, calls)
    verdict = diagnose(exercise, parts[:2])._replace(notes=notes)
    if changed:
        verdict.problems.append(changed)
    elif not all(_equal(a.astype(float), b.astype(float), exercise.same) for a, b in zip(parts[0], parts[2])):
        verdict.problems.append("It answers differently the second time, with the same arguments: does it keep something between calls?")
    return verdict


def _not_a_function(exercise, attempt):
    name, takes = exercise.solution.__name__, list(inspect.signature(exercise.solution).parameters)
    if attempt is None or not callable(attempt):
        what = "None" if attempt is None else f"{_a(type(attempt).__name__)}"
        return f"A check is given the function itself, without calling it: check(..., {name}); it got {what}."
    if inspect.isclass(attempt):
        return f"A check is given a function, and {attempt.__name__} is a class: check(..., {name})."
    if inspect.iscoroutinefunction(attempt) or inspect.isgeneratorfunction(attempt):
        return f"{name} must be a plain function: `yield`, `async` or `await` make it something else."
    try:
        inspect.signature(attempt).bind(*takes)
    except TypeError:
        count = f"{len(takes)} argument{'s' * (len(takes) != 1)}"
        return f"It must take {count}, {name}({', '.join(takes)}), and takes {inspect.signature(attempt)}."
    except ValueError:                                           # a built-in that does not tell
        pass
    return ""


class _TooSlow(BaseException):
    """Thrown into a learner's function that does not come back."""


def _call_in_time(function, calls):
    """(results or None, what it raised or None, whether it printed). What does not come back raised _TooSlow, or TimeoutError where
    its thread could not be ended."""
    outcome, printed = {}, io.StringIO()

    def work():
        try:
            with np.errstate(all="ignore"):
                outcome["results"] = [function(*arguments) for arguments in calls]
        except BaseException as error:  # whatever it raises, SystemExit and KeyboardInterrupt too
            outcome["error"] = error

    thread = threading.Thread(target=work, daemon=True)
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        thread.start()
        thread.join(SECONDS)
        for _ in range(3):                                       # a loop may catch one; what catches all of them is left behind
            if not thread.is_alive():
                break
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_TooSlow))
            thread.join(0.1)
    error = TimeoutError() if thread.is_alive() else outcome.get("error")
    return outcome.get("results"), error, bool(_text(printed))


def _text(buffer):
    try:
        return buffer.getvalue()
    except ValueError:                                           # it closed sys.stdout
        return ""


def _say_error(error, attempt):
    if isinstance(error, _TooSlow):
        return f"It did not come back within {SECONDS:g} seconds: is there a loop that never ends?"
    if isinstance(error, TimeoutError) and not error.args:
        return f"It did not come back within {SECONDS:g} seconds, and cannot be stopped: restart the kernel, or it goes on unseen."
    if isinstance(error, SystemExit):
        return "It calls exit(), which would end the notebook: `return` ends a function."
    if isinstance(error, RecursionError):
        return "It calls itself without end (RecursionError)."
    code = getattr(attempt, "__code__", None)
    at = next((f for f in reversed(traceback.extract_tb(error.__traceback__)) if code and f.filename == code.co_filename), None)
    line = f", at `{textwrap.shorten(at.line, 90, placeholder=' …')}`" if at and at.line else ""
    try:
        text = " ".join(str(error).split())[:160]
    except Exception:
        text = ""
    return f"It stops with {type(error).__name__}{line}{': ' + text if text else ''}."


def _parts(exercise, result):
    """A result as a tuple of arrays, or the sentence that says why it is none."""
    outputs = exercise.outputs
    wanted = ", ".join(outputs)
    if result is None:
        return f"It returns None: is `return {wanted}` missing?"
    if len(outputs) > 1:
        if not isinstance(result, tuple | list):
            return f"It returns {_a(type(result).__name__)}, and must return {len(outputs)} things: {wanted}."
        if len(result) != len(outputs):
            return f"It returns {len(result)} things, and must return {len(outputs)}: {wanted}."
        parts = tuple(result)
    else:
        parts = (result[0],) if isinstance(result, tuple) and len(result) == 1 else (result,)
        if isinstance(result, tuple) and len(result) != 1:
            return f"It returns {len(result)} things, and must return one: {wanted}."
    arrays = []
    for output, part in zip(outputs, parts):
        try:
            array = np.array(part)                               # a copy: a later call may write into a buffer it keeps
        except Exception:
            array = None
        if part is None:
            return f"{output} is None."
        if array is None or array.dtype.kind not in "fiubc":
            return f"{output} is {_a(type(part).__name__)}, and must be an array of numbers."
        if array.dtype.kind == "c":
            return f"{output} is complex, and must be real: `.real`, or a view as floats?"
        arrays.append(array)
    return tuple(arrays)


def _changed(exercise, before, after):
    """The sentence about arguments that the function changed."""
    parameters = list(inspect.signature(exercise.solution).parameters)
    changed = {}
    for left, right in zip(before, after):
        for name, old, new in zip(parameters, left, right):
            if not _same_argument(old, new):
                changed[name] = None
    return f"It changes its argument {' and '.join(changed)}: an op must leave what it is given as it was." if changed else ""


def _same_argument(old, new):
    if isinstance(old, np.ndarray):
        return isinstance(new, np.ndarray) and old.shape == new.shape and np.array_equal(old, new, equal_nan=old.dtype.kind == "f")
    if isinstance(old, dict):
        return old.keys() == new.keys() and all(_same_argument(old[key], new[key]) for key in old)
    if isinstance(old, list | tuple):
        return len(old) == len(new) and all(map(_same_argument, old, new))
    return callable(old) or old == new


def _copies(arguments):
    return tuple(a if callable(a) else copy.deepcopy(a) for a in arguments)


# ---- the diagnosis ----
def diagnose(exercise, parts):
    """What is wrong with each output of an attempt, given its outputs on both draws: Verdict."""
    right, given = solved(exercise), [tuple(np.asarray(a, float) for a in p) for p in parts]
    wrong = [i for i in range(len(exercise.outputs)) if not all(_equal(g[i], r[i], exercise.same) for g, r in zip(given, right))]
    known = {} if not wrong else _known(exercise, wrong, given, right)
    types = {i: problem for i, part in enumerate(parts[0]) if (problem := _dtype(exercise, i, part))}
    problems, hints = [], []
    for group in dict.fromkeys(known.values()):                  # outputs with one explanation share the sentence
        outputs = [i for i in wrong if known.get(i) == group]
        names = " and ".join(exercise.outputs[i] for i in outputs)
        problems.append(f"{names} {'is' if len(outputs) == 1 else 'are'} what comes out if " + ", and ".join(m.says for m in group)
                        + _evidence(exercise.outputs[outputs[0]], given[0][outputs[0]], right[0][outputs[0]]))
        hints += [line for mistake in group for line in _lines(exercise, mistake)]
    for i in wrong:
        if i in known:
            continue
        if i in types and all(_equal(given[d][i], right[d][i], 1e-4) for d in (0, 1)):
            problems.append(types[i])
            continue
        output = exercise.outputs[i]
        says = (
            _exchanged(exercise, i, given, right)
            or _agree(lambda d, i=i: _shape(given[d][i], right[d][i]))
            or _agree(lambda d, i=i: _not_finite(given[d][i]))
            or _agree(lambda d, i=i: "" if np.any(given[d][i]) else "is zero everywhere")
            or _agree(lambda d, i=i: _factors(exercise, i, draws(exercise)[d], given[d][i]))
            or _agree(lambda d, i=i: _looks_like(given[d][i], right[d][i], exercise.same))
            or "is wrong in a way that no known mistake explains"
        )
        problems.append(f"{output} {says}" + _evidence(output, given[0][i], right[0][i]))
        hints += _assigns(exercise, output)
    if not wrong:
        problems += types.values()
    keys = {exercise.outputs[i]: tuple(mistake.key for mistake in group) for i, group in known.items()}
    return Verdict(problems, keys, list(dict.fromkeys(hints)))


def _agree(says):
    """What both draws say, or nothing."""
    first = says(0)
    return first if first and first == says(1) else ""


def _equal(given, right, same=SAME):
    """Equal to rounding, not finite places included; False for another shape."""
    if given.shape != right.shape:
        return False
    with np.errstate(all="ignore"):
        finite = np.isfinite(right)
        scale = np.abs(right[finite]).max(initial=1e-30)
        return bool(np.array_equal(finite, np.isfinite(given)) and np.abs(given - right)[finite].max(initial=0) <= same * scale)


def _known(exercise, wrong, given, right):
    """Which known mistakes explain which wrong outputs: {output's index: tuple of Mistake}. The fewest mistakes first, then those
    that explain most outputs."""
    found = []
    for group, answers in explanations(exercise):
        fits = [i for i in wrong if all(_equal(given[d][i], answers[d][i], exercise.same) for d in (0, 1))]
        spoils = [i for i in range(len(exercise.outputs)) if i not in fits and not _equal(answers[0][i], given[0][i], exercise.same)]
        if fits:
            found.append((len(group), -len(fits), len(spoils), len(found), group, fits))
    explained = {}
    for *_, group, fits in sorted(found, key=lambda f: f[:4]):
        for i in fits:
            explained.setdefault(i, group)
    return explained


def _exchanged(exercise, i, given, right):
    for j, other in enumerate(exercise.outputs):
        if j != i and all(_equal(given[d][i], right[d][j], exercise.same) for d in (0, 1)):
            return f"holds what {other} must be: the order is {', '.join(exercise.outputs)}"
    return ""


def _shape(given, right):
    if given.shape == right.shape:
        return ""
    squeezed = given.size == right.size and _equal(given.reshape(right.shape), right)
    return f"has shape {given.shape}, and must have {right.shape}" + (": the numbers are right" if squeezed else "")


def _not_finite(given):
    """Not how many places: that would differ between the draws."""
    if np.isfinite(given).all():
        return ""
    return "is NaN in places" if np.isnan(given).any() else "is infinite in places"


def _factors(exercise, i, arguments, given):
    with np.errstate(all="ignore"):
        terms = exercise.terms(*_copies(arguments)).get(exercise.outputs[i])
    if not terms:
        return ""
    basis = np.stack([np.ravel(array) for array, _ in terms.values()], 1)
    factors = np.linalg.lstsq(basis, given.ravel(), rcond=None)[0]
    if not _equal(basis @ factors, given.ravel(), exercise.same):
        return ""
    odd = [f"{label} counts {_number(c)} times, and must {f'count {_number(want)}' if want else 'not be there'}"
           for (label, (_, want)), c in zip(terms.items(), factors) if abs(c - want) > 1e-6]
    return "is made of the right terms, but " + "; ".join(odd) if odd else ""


def _number(c):
    return f"{0.0 if abs(c) < 1e-6 else c:+.4g}".replace("+0", "0")


def _looks_like(given, right, same):
    """What it resembles. Every sentence is such that two draws can agree on it."""
    if given.shape != right.shape:                               # of the second draw only: the first one's was looked at
        return ""
    if given.ndim == 2 and _equal(given.T, right, same):
        return "is right, but transposed"
    for axis in range(right.ndim):
        turned = _order(given, right, axis, same)
        if turned:
            return turned
    with np.errstate(all="ignore"):
        ratio = np.where(right == 0, np.nan, given / right)
    factor = float(np.ravel(_mean(ratio))[0])
    if _equal(given, factor * right, same):
        return f"is {factor:.6g} times what it must be"
    offset = float((given - right).mean())
    if np.abs(given - right - offset).max() <= same * max(abs(offset), np.abs(right).max()):
        return f"is {offset:+.6g} away everywhere"
    rough = np.abs(given - right).max() / np.abs(right).max(initial=1e-30)
    if rough < 1e-4:
        return f"is right to 1 part in {10 ** int(-np.log10(rough)):,} only: something is rounded, or computed in float32"
    for axis in range(right.ndim) if right.ndim > 1 else ():
        rest = tuple(k for k in range(right.ndim) if k != axis)
        if _equal(given, _mean(ratio, rest) * right, same):
            return f"is off by a factor that depends on axis {axis} alone: something of that length is multiplied in, or left out"
        close = np.abs(given - right).max(rest) <= same * np.abs(right).max()
        if close.any() and not close.all():
            places = np.flatnonzero(close).tolist()
            if len(places) < 4:
                return f"is right at {places} of axis {axis}, and nowhere else"
            return f"is wrong at {np.flatnonzero(~close).tolist()} of axis {axis}, and right elsewhere"
    return ""


def _mean(ratio, axes=None):
    """Mean of what is finite; 0 where nothing is."""
    finite = np.isfinite(ratio)
    return np.where(finite, ratio, 0).sum(axes, keepdims=True) / np.maximum(finite.sum(axes, keepdims=True), 1)


def _order(given, right, axis, same):
    """Right numbers in another order along one axis?"""
    length = right.shape[axis]
    if length < 2 or length > 64:
        return ""
    g, r = (np.moveaxis(a, axis, 0).reshape(length, -1) for a in (given, right))
    scale = np.abs(r).max(initial=1e-30)
    match = np.abs(g[:, None] - r[None]).max(-1) <= same * scale  # (length, length): row a of given is row b of right
    if not (match.sum(0) == 1).all() or not (match.sum(1) == 1).all():
        return ""
    order = match.argmax(1).tolist()
    what = "its last axis" if axis == right.ndim - 1 else f"axis {axis}"
    if order == list(range(length))[::-1]:
        return f"is right, but {what} is reversed"
    shift = (order[0] - 0) % length
    if order == [(k + shift) % length for k in range(length)]:
        return f"is right, but shifted along {what} by {shift if shift <= length / 2 else shift - length:+d}"
    return f"holds the right numbers, but {what} is in the order {order}"


@functools.cache
def _counts(exercise):
    """For each output, whether it counts something: the solution gives whole numbers."""
    result = exercise.solution(*_copies(draws(exercise)[0]))
    return [np.asarray(part).dtype.kind == "i" for part in (result if isinstance(result, tuple) else (result,))]


def _dtype(exercise, i, part):
    output = exercise.outputs[i]
    if _counts(exercise)[i]:
        return ""
    if part.dtype.kind == "f" and part.dtype.itemsize < 8:
        return f"{output} is {part.dtype}, and must be float64: the type of what comes in is the type of what goes out."
    return "" if part.dtype.kind == "f" else f"{output} is of type {part.dtype}, and must be float64."


def _evidence(output, given, right):
    """One number to compute again."""
    if given.shape != right.shape or not np.isfinite(given).all() or not np.isfinite(right).all():
        return "."
    if given.ndim == 0:
        return f". It is {given:.4g}, and must be {right:.4g}."
    at = tuple(int(k) for k in np.unravel_index(np.abs(given - right).argmax(), right.shape))
    return f". Worst at {output}{list(at)}: {given[at]:.4g}, and must be {right[at]:.4g}."


def _lines(exercise, mistake):
    """The lines of the solution that a mistake breaks."""
    source = source_of(exercise)
    for right, _ in mistake.edits:
        start = source.index(right)
        end = start + len(right)
        first, last = source.rfind("\n", 0, start) + 1, source.find("\n", end)
        yield from (line.strip() for line in source[first:last if last >= 0 else None].splitlines() if line.strip())


def _assigns(exercise, output):
    """The lines of the solution that make an output."""
    lines = [line.strip() for line in source_of(exercise).splitlines()]
    made = [line for line in lines if re.match(rf"[\w, \[\].:]*\b{re.escape(output)}\b[\w, \[\].:()]* [-+*/]?= ", line)]
    return made or [line for line in lines if line.startswith("return")]


def _a(word):
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"
