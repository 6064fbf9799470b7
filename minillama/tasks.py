"""Tasks: questions that have one right answer, asked of a trained model, beside what guessing would score.

    accuracy   share of the trials in which every token of every answer is the likeliest one: exact match under greedy decoding
    interval   Wilson's, 95 %: (a + z²/2n ± z·√(a(1 - a)/n + z²/4n²)) / (1 + z²/n), a the accuracy, n the trials, z = 1.96
    chance     mean over the trials of Π 1/len(options): what a guesser scores who knows the form of the answer, its length and what
               may stand at each place of it, and draws each place from its options with equal probability

The manner is LLaMA's own closed-book evaluation: exact match, greedy decoding, no examples or some before the question [LLaMA §3.2,
§3.3]. The interval: Wilson 1927, JASA 22. Nothing is decoded step by step: as long as greedy decoding is right, what it has written is
the answer so far, so one pass over prompt and answer says at every place whether it would go on rightly. The answer is read in
the tokens that the tokenizer makes of it; the same text in other tokens would not count.

Every trial is made from (task, seed, number) alone. The stories and sums are the built-in corpus' own, drawn from a series that no
training seed draws from: no training text has them, but for small things that are everywhere (there are 100 sums of two digits).
`sums-2` and `sums-3` are as in the text; it has no sum of one column or of four. Lesson: lessons/14_pretrained.ipynb.
"""
import math
import random
from collections.abc import Callable
from itertools import takewhile
from typing import NamedTuple

from .errors import InputError
from .text import corpus

Z = 1.96  # standard deviations: 95 %
ITEMS = 3  # to copy and to reverse
BRACKETS = {"(": ")", "[": "]", "{": "}"}


class Blank(NamedTuple):
    """A gap in a text: what stands before it, what belongs there, and what a guesser chooses from: one of each of `options`, joined.
    A trial is a tuple of blanks, which follow each other; an empty answer asks nothing."""

    prompt: str
    answer: str
    options: tuple[tuple[str, ...], ...]


class Task(NamedTuple):
    """A kind of question: rng -> a trial, what is asked, and how many solved examples stand before it unless --shots says otherwise."""

    draw: Callable[[random.Random], tuple[Blank, ...]]
    about: str
    shots: int


def copy(rng):
    """`Tom Leo Mia: Tom Leo Mia.`"""
    items = rng.choices(corpus.NAMES, k=ITEMS)
    return (_listed(items, items),)


def reverse(rng):
    """`Tom Leo Mia: Mia Leo Tom.`"""
    items = rng.choices(corpus.NAMES, k=ITEMS)
    return (_listed(items, items[::-1]),)


def _listed(items, answer):
    places = (tuple(f" {name}" for name in corpus.NAMES),) * len(answer)
    return Blank(f"{' '.join(items)}:", "".join(f" {item}" for item in answer) + ".", (*places, (".",)))


def brackets(rng):
    """`([]{(: )}).` Four brackets are opened and one of them closed at once: close the others, the innermost first."""
    opened, closed = rng.choices(list(BRACKETS), k=4), rng.randrange(4)
    written = "".join(bracket + BRACKETS[bracket] * (i == closed) for i, bracket in enumerate(opened))
    answer = [BRACKETS[bracket] for i, bracket in enumerate(opened) if i != closed][::-1]
    return (Blank(f"{written}:", f" {''.join(answer)}.", ((" ",), *(tuple(BRACKETS.values()),) * 3, (".",))),)


def stories(rng):
    """A story of the built-in corpus, up to `Now the kite is with`: which of the two has it?"""
    pen = corpus.Writer(rng.random)
    corpus.stories(pen)
    text = "".join(pen.parts)
    friends, prompt = text.split(" in the ")[0].split(" met "), text[:text.rindex(" ")]
    return (Blank(prompt, text[len(prompt):], (tuple(f" {name}" for name in friends), (".",))),)


def sums(columns):
    """The task of adding two numbers with so many digits in the corpus' form: `8+2=10, 1+5+4=10. So Tom has 100.`

    Given are the digits to add and all that is chosen freely; asked is what follows from it: the sum of every column, the carry that
    is taken along, and, from two columns on, the total.
    """

    def draw(rng):
        pen = corpus.Writer(rng.random)
        corpus.sums(pen)
        text = "".join(pen.parts)
        name, prompt = text.split(" ")[0], text[:text.index(": ") + 2]
        carry, total, blanks = 0, "", []
        for column in range(columns):
            if carry:
                blanks.append(Blank(prompt, "1", (tuple(corpus.DIGITS),)))
                prompt = "+"
            x, y = rng.randrange(10), rng.randrange(10)
            result = carry + x + y
            blanks.append(Blank(f"{prompt}{x}+{y}=", str(result), (tuple(str(carry + n) for n in range(19)),)))
            carry, total = result // 10, f"{result % 10}{total}"
            prompt = ", " if column < columns - 1 else f". So {name} has "
        total = f"{carry or ''}{total}"
        if columns == 1:
            return (*blanks, Blank(f"{prompt}{total}.", "", ()))
        return (*blanks, Blank(prompt, f"{total}.", (*(tuple(corpus.DIGITS),) * len(total), (".",))))

    return draw


TASKS = {
    "copy": Task(copy, f"write {ITEMS} names again", 5),
    "reverse": Task(reverse, f"write {ITEMS} names in reverse order", 5),
    "brackets": Task(brackets, "close the brackets that are open", 5),
    "stories": Task(stories, "who has what, at the end of a built-in story", 0),
    **{f"sums-{n}": Task(sums(n), f"add numbers with {n} digit{'s' * (n > 1)}, column by column", 0) for n in (1, 2, 3, 4)},
}


def chance(trial):
    """The probability that the guesser is right in this trial."""
    return 1 / math.prod(len(place) for blank in trial for place in blank.options)


def wilson(right, trials):
    """The interval that holds the true rate with 95 %: (low, high)."""
    rate, spread = right / trials, Z * Z / trials
    centre, half = rate + spread / 2, math.sqrt(rate * (1 - rate) * spread + spread * spread / 4)
    return max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread))


def draw(name, seed, index, shots):
    """Trial `index` of a task and its solved examples: (trial, text before it), the same trial however many examples there are."""
    rng = random.Random(f"task {name} {seed} {index}")
    trial, *examples = (TASKS[name].draw(rng) for _ in range(1 + shots))
    return trial, "".join(_text(example) + " " for example in examples)


def _text(trial):
    return "".join(blank.prompt + blank.answer for blank in trial)


def encode(trial, before, tokenizer):
    """Tokens of a trial, and which of them are asked: those that hold a character of an answer.

    Args:
        trial:     tuple of Blank
        before:    str          text before it
        tokenizer: Tokenizer

    Returns:
        ids:   list of int      from <s> to the last token of the last answer
        asked: list of bool     as many

    Raises:
        InputError: the tokenizer does not give the text back
    """
    text, answers, at = before + _text(trial), [], len(before)
    for blank in trial:
        at += len(blank.prompt)
        answers.append(range(at, at := at + len(blank.answer)))
    ids = tokenizer.encode(text, bos=True)
    stream, asked, written = tokenizer.stream(), [], ""
    for id in ids:
        start = len(written)
        written += stream.push(id)
        asked.append(any(start < answer.stop and answer.start < len(written) for answer in answers))
    if written != text:
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(written, text)))
        raise InputError(f"this model's tokenizer cannot encode {text[same:][:1]!r}, character {same} of {text[:60]!r}")
    end = max(i for i, counts in enumerate(asked) if counts) + 1
    return ids[:end], asked[:end]


def summarise(right, trials, shots):
    """One task's line: the object that `eval --tasks --json` prints for it."""
    low, high = wilson(sum(right), len(right))
    return {"accuracy": sum(right) / len(right), "low": low, "high": high, "chance": math.fsum(map(chance, trials)) / len(trials),
            "right": sum(right), "trials": len(right), "shots": shots}
