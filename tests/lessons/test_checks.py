"""The checks of the lessons: right answers pass however they are written, every known mistake is rejected and named, two at once too,
and nothing that a learner hands in stops the notebook."""
import itertools
import re
import sys
import time

import numpy as np
import planted_bugs
import pytest
import right_answers

from lessons import case, check
from lessons.check import MODULES, draws, explanations, find, format_verdict, judge, names, solved, source_of, with_mistakes

EXERCISES = {name: find(name) for number in MODULES for name in names(number)}
MISTAKES = [(name, mistake) for name, exercise in EXERCISES.items() for mistake in exercise.mistakes]
each_exercise = pytest.mark.parametrize("name", EXERCISES)


def identifier(value):
    return value if isinstance(value, str) else value.key


def wrong_outputs(exercise, answers):
    """Indices of the outputs in which some answers differ from the right ones."""
    return [i for i in range(len(exercise.outputs)) if not all(
        a[i].shape == r[i].shape and np.allclose(a[i], r[i], rtol=0, atol=exercise.same * np.nanmax(np.abs(r[i])), equal_nan=True)
        for a, r in zip(answers, solved(exercise)))]


def gives_zeros(exercise, output, keys):
    """Is this explanation of an output a gradient that is dropped? Then zeros have a name."""
    mistakes = [mistake for mistake in exercise.mistakes if mistake.key in keys]
    answer = with_mistakes(exercise, mistakes)(*draws(exercise)[0])
    return not np.any((answer if isinstance(answer, tuple) else (answer,))[exercise.outputs.index(output)])


@each_exercise
def test_right_answers_pass(name):
    """The solution, and three at least that are written differently."""
    answers = right_answers.RIGHT[name]
    assert len(answers) >= 3
    for answer in [EXERCISES[name].solution, *answers]:
        verdict = judge(EXERCISES[name], answer)
        assert verdict.passed, f"{answer.__name__}: {verdict.problems}"


@pytest.mark.parametrize(("name", "mistake"), MISTAKES, ids=identifier)
def test_mistake_is_rejected_and_named(name, mistake):
    exercise = EXERCISES[name]
    verdict = judge(exercise, with_mistakes(exercise, [mistake]))
    assert not verdict.passed
    assert verdict.known, verdict.problems
    assert set(verdict.known.values()) == {(mistake.key,)}
    assert mistake.says in verdict.problems[0]
    assert verdict.hints


@each_exercise
def test_no_two_mistakes_are_alike(name):
    exercise = EXERCISES[name]
    assert len({mistake.key for mistake in exercise.mistakes}) == len(exercise.mistakes)
    alone = {group[0].key: answers for group, answers in explanations(exercise) if len(group) == 1}
    assert len(alone) == len(exercise.mistakes)
    for (left, a), (right, b) in itertools.combinations(alone.items(), 2):
        same = all(x.shape == y.shape and np.allclose(x, y, rtol=0, atol=1e-7 * np.abs(y[np.isfinite(y)]).max(initial=0), equal_nan=True)
                   for x, y in zip(itertools.chain(*a), itertools.chain(*b)))
        assert not same, f"{left} and {right} give the same numbers"


@each_exercise
def test_two_mistakes_at_once_are_named(name):
    """Every wrong output is explained, by these two, by one of them, or by others that give the same numbers on both draws."""
    exercise = EXERCISES[name]
    pairs = [(group, answers) for group, answers in explanations(exercise) if len(group) == 2]
    assert pairs
    exact = 0
    for group, answers in pairs:
        wrong = wrong_outputs(exercise, answers)
        verdict = judge(exercise, with_mistakes(exercise, group))
        keys = {mistake.key for mistake in group}
        assert set(verdict.known) == {exercise.outputs[i] for i in wrong}, (keys, verdict.problems)
        exact += set().union(*verdict.known.values()) <= keys
    assert exact >= 0.9 * len(pairs)


@each_exercise
def test_what_is_no_answer_fails(name):
    exercise = EXERCISES[name]
    right = solved(exercise)[0]

    def stub(*arguments):
        raise NotImplementedError

    def give(arrays):
        return tuple(arrays) if len(arrays) > 1 else arrays[0]

    def zeros(*arguments):
        return give([np.zeros_like(r) for r in right])

    def identity(*arguments):
        return give([np.asarray(next((a for a in arguments if isinstance(a, np.ndarray)), 1.0), float)] * len(right))

    def right_shape(*arguments):
        return give([np.random.default_rng(5).standard_normal(r.shape) for r in right])

    def first_draw(*arguments):
        return give(right)

    assert not judge(exercise, stub).written
    assert "not written yet" in format_verdict(name, exercise, judge(exercise, stub))
    for attempt in (zeros, identity, right_shape, first_draw):
        verdict = judge(exercise, attempt)
        assert verdict.written
        assert not verdict.passed, attempt.__name__
        dropped = attempt is zeros and all(gives_zeros(exercise, *found) for found in verdict.known.items())
        assert attempt is identity or dropped or not verdict.known, verdict.problems


@each_exercise
def test_an_answer_that_is_right_on_one_draw_only(name):
    """Its shape, too, may be wrong on the second: one sentence all the same."""
    exercise = EXERCISES[name]
    seen = []

    def attempt(*arguments):
        seen.append(arguments)
        answer = exercise.solution(*arguments)
        outputs = answer if isinstance(answer, tuple) else (answer,)
        if len(seen) > 1:
            outputs = tuple(np.asarray(output)[..., :-1] if np.ndim(output) else np.zeros(2) for output in outputs)
        return outputs if isinstance(answer, tuple) else outputs[0]

    verdict = judge(exercise, attempt)
    assert not verdict.passed
    assert verdict.problems


@each_exercise
def test_an_honest_unknown(name):
    """A mistake that nobody listed gets no name, but one number to compute again."""
    exercise = EXERCISES[name]

    def odd(*arguments):
        result = exercise.solution(*arguments)
        parts = [np.sinh(np.asarray(part) * 0.7 + 0.1) for part in (result if isinstance(result, tuple) else (result,))]
        return tuple(parts) if len(parts) > 1 else parts[0]

    verdict = judge(exercise, odd)
    assert not verdict.passed
    assert not verdict.known
    assert all("no known mistake explains" in problem and "must be" in problem for problem in verdict.problems), verdict.problems


@each_exercise
def test_a_number_to_compute_again(name):
    """What the sentence says of the worst place is what the solution gives on case(name)."""
    exercise = EXERCISES[name]
    for mistake in exercise.mistakes:
        for problem in judge(exercise, with_mistakes(exercise, [mistake])).problems:
            found = re.search(r"Worst at (\w+)\[([\d, ]*)\]: \S+, and must be (\S+)\.$", problem)
            if found:
                result = exercise.solution(*case(name))
                part = (result if isinstance(result, tuple) else (result,))[exercise.outputs.index(found[1])]
                value = part[tuple(map(int, found[2].split(",")))]
                assert f"{value:.4g}" == found[3]


@each_exercise
def test_half_a_second(name):
    exercise = EXERCISES[name]
    explanations.cache_clear()
    started = time.process_time()
    judge(exercise, with_mistakes(exercise, exercise.mistakes[:1]))
    assert time.process_time() - started < 0.5


@each_exercise
def test_solution_stands_alone(name):
    """A notebook holds it as it is: nothing but np and math comes from outside, and its docstring is the stub's."""
    exercise = EXERCISES[name]
    used = set(exercise.solution.__code__.co_names) & set(exercise.solution.__globals__)
    assert used <= {"np", "math"}
    assert exercise.solution.__doc__
    assert exercise.solution.__name__ == name[3:]
    assert all(source_of(exercise).count(right) == 1 for mistake in exercise.mistakes for right, _ in mistake.edits)


def test_terms_with_wrong_factors():
    """What nobody listed, but is made of the equation's terms."""
    exercise = EXERCISES["03.rmsnorm_backward"]

    def sign(dout, x, weight, eps):
        dx, dweight = exercise.solution(dout, x, weight, eps)
        rms = np.sqrt((x * x).mean(-1, keepdims=True) + eps)
        return 2 * dout * weight / rms - dx, 2 * dweight

    verdict = judge(exercise, sign)
    assert "n mean(dn n) / rms counts +1 times, and must count -1" in verdict.problems[0]
    assert "dweight is 2 times what it must be" in verdict.problems[1]


def wrong(result):
    """An attempt at 03.rmsnorm_forward that returns something made of the right answer."""
    return lambda x, weight, eps: result(EXERCISES["03.rmsnorm_forward"].solution(x, weight, eps))


@pytest.mark.parametrize(("attempt", "says"), [
    (None, "the function itself"),
    (3, "got an int"),
    (np.zeros(3), "the function itself"),
    (dict, "is a class"),
    (lambda x: x, "must take 3 arguments"),
    (lambda *a: None, "`return out` missing"),
    (lambda *a: {"out": 1}, "is a dict"),
    (lambda *a: "text", "is a str"),
    (lambda *a: [None], "must be an array of numbers"),
    (lambda *a: (1, 2), "returns 2 things"),
    (lambda *a: 1 / 0, "ZeroDivisionError"),
    (lambda *a: exit(), "exit()"),
    (lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()), "KeyboardInterrupt"),
    (wrong(lambda out: out.astype(np.float32)), "float32, and must be float64"),
    (wrong(lambda out: out + 0j), "complex"),
    (wrong(lambda out: out > 0), "and must be"),                 # booleans, which NumPy does not subtract
    (wrong(lambda out: np.swapaxes(out, 0, 1)), "has shape (5, 2, 7), and must have (2, 5, 7)"),
    (wrong(lambda out: out[..., None]), "the numbers are right"),
    (wrong(lambda out: out[..., ::-1]), "its last axis is reversed"),
    (wrong(lambda out: out[..., [1, 0, 2, 3, 4, 5, 6]]), "in the order [1, 0, 2, 3, 4, 5, 6]"),
    (wrong(lambda out: np.roll(out, 1, 1)), "shifted along axis 1 by -1"),
    (wrong(lambda out: -3 * out), "is -3 times"),
    (wrong(lambda out: out + 0.5), "is +0.5 away everywhere"),
    (wrong(lambda out: out * np.nan), "is NaN in places"),
    (wrong(lambda out: out * np.arange(1, 8)), "a factor that depends on axis 2 alone"),
    (wrong(lambda out: out * (1 + 1e-7 * np.sin(9 * out))), "something is rounded"),
    (wrong(lambda out: np.where(np.arange(5)[:, None] == 0, out, out**2)), "is right at [0] of axis 1"),
])
def test_whatever_is_handed_in(attempt, says, capsys):
    """One sentence each, and the notebook goes on."""
    check("03.rmsnorm_forward", attempt)
    printed = capsys.readouterr().out
    assert says in printed, printed
    assert "✗ 03.rmsnorm_forward" in printed


def test_hint_and_case(capsys):
    exercise = EXERCISES["03.rmsnorm_forward"]
    check("03.rmsnorm_forward", with_mistakes(exercise, exercise.mistakes[:1]), hint=True)
    assert "rms = np.sqrt(" in capsys.readouterr().out
    x, *_ = case("03.rmsnorm_forward")
    x[:] = 0
    assert np.abs(case("03.rmsnorm_forward")[0]).max() > 0
    check("03.no_such", print)
    assert "03.rmsnorm_forward" in capsys.readouterr().out


def test_prints_changed_inputs_and_memory(capsys):
    exercise, kept = EXERCISES["03.rmsnorm_forward"], []

    def changes(x, weight, eps):
        print("a lot")
        out = exercise.solution(x, weight, eps)
        x *= 2
        return out

    def remembers(x, weight, eps):
        kept.append(0)
        return exercise.solution(x, weight, eps) + (len(kept) == 3)

    before = [a.copy() for a in draws(exercise)[0][:2]]
    verdict = judge(exercise, changes)
    assert verdict.problems == ["It changes its argument x: an op must leave what it is given as it was."]
    assert "not shown" in verdict.notes[0]
    assert "a lot" not in capsys.readouterr().out
    assert all(np.array_equal(a, b) for a, b in zip(before, draws(exercise)[0]))
    assert "differently the second time" in judge(exercise, remembers).problems[0]


def test_endless_loops(monkeypatch):
    monkeypatch.setattr(sys.modules["lessons.check"], "SECONDS", 0.2)  # the name lessons.check is the function
    exercise = EXERCISES["03.rmsnorm_forward"]

    def endless(x, weight, eps):
        while True:
            pass

    def stubborn(x, weight, eps):
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            try:
                while time.monotonic() < end:
                    pass
            except BaseException:
                pass

    assert "never ends" in judge(exercise, endless).problems[0]
    assert "restart the kernel" in judge(exercise, stubborn).problems[0]
    time.sleep(1.3)


def gradients(forward, wrong, arrays, extra):
    out, cache = forward(*arrays.values(), *extra)
    dout = np.random.default_rng(3).standard_normal(np.shape(out))
    found = wrong(dout, cache)
    return dout, found if isinstance(found, tuple) else (found,)


PLANTED = [(name, mistake) for name, mistake in MISTAKES if mistake.planted]


@pytest.mark.parametrize(("name", "mistake"), PLANTED, ids=identifier)
def test_one_list_with_the_planted_bugs(name, mistake):
    """A mistake that says so is the very bug which the project's own tests must reject."""
    forward, bug, arrays, extra = planted_bugs.BUGS[mistake.planted]
    dout, expected = gradients(forward, bug, arrays, extra)
    function = with_mistakes(EXERCISES[name], [mistake])
    if name == "02.cross_entropy_backward":                      # of the scored tokens, and for a gradient of 1
        scored = planted_bugs.TARGETS != planted_bugs.nn.IGNORE
        given, expected = function(arrays["logits"][scored], planted_bugs.TARGETS[scored]), (expected[0][scored] / dout,)
    elif name == "04.rope_backward":                             # a linear op's backward needs no x
        given = function(dout, *extra)
    else:
        given = function(dout, *arrays.values(), *extra)
    for a, b in zip(given if isinstance(given, tuple) else (given,), expected, strict=True):
        assert np.abs(a - b).max() <= 1e-9 * np.abs(b).max()     # a path that is dropped: 0 and 0
