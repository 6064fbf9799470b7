"""The built-in corpus: three small languages, generated, whose entropy is known exactly, so that nothing has to be downloaded.

One grammar both writes and reads. A source is an ordinary function that is given a pen: `pen.say` writes fixed text,
`pen.pick` one of several options, `pen.recall` what the text before has already decided. A `Writer` draws each choice; a
`Reader` runs the same function along a finished text and finds each choice again. In every choice no option is a
prefix of another, so a text has exactly one derivation, and by the chain rule its information is the sum of its choices':

    bits(text) = Σ −log2 p(choice)        floor = ln 2 · Σ bits / Σ tokens        nats/token

No model does better on average: cross-entropy ≥ entropy (Gibbs' inequality; Shannon 1948, theorem 3, for the bits). No document
is a prefix of another, so the end of a document, `</s>`, costs nothing. No text belongs to two sources, so a model that must
also find out which source it reads pays −log2 p bits more, p the probability of that source before anything is read: once, as long
as it reads from one source. Batches mix rows, not documents: `minillama/evaluate.py` says what that costs a token.

`recall_bits` is what memory saves: what a reader who knows the grammar, but forgets what it has read, would pay in addition.
As a share of bits + recall_bits it is RECALL_SHARE: who is there and has what, which town is which, the carried digit and the sum.

SHARES are a small stand-in for the paper's mix of seven sources, CommonCrawl at 67.0 % to StackExchange at 2.0 % [LLaMA §2.1,
table 1]. Lesson: lessons/00_baselines.ipynb.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from minillama.errors import InputError

SHARES = {"stories": 0.35, "facts": 0.40, "sums": 0.25}
RECALL_SHARE = {"stories": 0.291, "facts": 0.238, "sums": 0.399}  # of bits + recall_bits, measured on 20 000 documents
DIGITS = "0123456789"


class Document(NamedTuple):
    """One text, what it costs (bits), and what memory saves on it (recall_bits)."""

    text: str
    bits: float
    recall_bits: float


class Pen:
    """What a grammar writes with. Every method takes the literal text before the choice, then the options; `_choose` makes the choice."""

    def __init__(self):
        self.bits = self.recall_bits = 0.0

    def say(self, literal: str) -> None:
        """Fixed text: 0 bits."""
        self._choose((literal,))

    def pick(self, lead: str, options: Sequence[str], among: Sequence[str] = (), weights: Sequence[int] = ()) -> str:
        """One of `options`, equally likely or by `weights`: −log2 p bits. `among`: what it would be chosen from without memory."""
        if lead:
            self._choose((lead,))
        i = self._choose(options, weights)
        cost = math.log2(sum(weights) / weights[i]) if weights else math.log2(len(options))
        self.bits += cost
        if among:
            self.recall_bits += math.log2(len(among)) - cost
        return options[i]

    def recall(self, lead: str, value: str, among: Sequence[str]) -> str:
        """A value decided by the text before: 0 bits for a reader that remembers it, log2(len(among)) for one that does not."""
        return self.pick(lead, (value,), among)


class Writer(Pen):
    """Draws every choice from `draw`, a function that returns uniform floats in [0, 1)."""

    def __init__(self, draw: Callable[[], float]):
        super().__init__()
        self.draw, self.parts = draw, []

    def _choose(self, options, weights=()):
        i = 0
        if weights:
            mark = self.draw() * sum(weights)
            while mark >= weights[i]:
                mark -= weights[i]
                i += 1
        elif len(options) > 1:
            i = int(self.draw() * len(options))
        self.parts.append(options[i])
        return i


class Reader(Pen):
    """Finds every choice again in a text, at the cursor `at`."""

    def __init__(self, text: str):
        super().__init__()
        self.text, self.at = text, 0

    def _choose(self, options, weights=()):
        for i, option in enumerate(options):
            if self.text.startswith(option, self.at):
                self.at += len(option)
                return i
        found = self.text[self.at : self.at + 12]
        raise InputError(f"the text must go on with one of {list(options)} at character {self.at}, got {found!r}")


def without(options, *gone):
    """The options that are left."""
    return tuple(option for option in options if option not in gone)


# ---- stories ----
NAMES = ("Tom", "Ann", "Leo", "Mia", "Sam", "Eva", "Ben", "Zoe")
PLACES = ("barn", "park", "wood", "hut", "yard", "shop", "cave", "mill")
COLOURS = ("red", "blue", "green", "gold", "black", "white", "pink", "grey")
THINGS = ("kite", "drum", "cup", "hat", "ball", "boat", "bell", "book")
BEASTS = ("lions", "bears", "foxes", "owls", "hens", "mules", "snakes", "goats")


def number(pen, lead, length):
    """A number of `length` digits, the first one not 0."""
    return pen.pick(lead, DIGITS[1:]) + "".join(pen.pick("", DIGITS) for _ in range(length - 1))


def stories(pen):
    """Two friends, two things, and who has what in the end."""
    tom = pen.pick("", NAMES)
    ann = pen.pick(" met ", without(NAMES, tom))
    pen.pick(" in the ", PLACES)
    pen.pick(" at ", DIGITS[1:])
    pen.pick(":", DIGITS[:6])
    pen.pick("", DIGITS)
    owner = {}
    for who in (tom, ann):
        pen.recall(". ", who, NAMES)
        pen.pick(" had a ", COLOURS)
        thing = pen.pick(" ", without(THINGS, *owner))
        owner[thing] = who
        pen.recall(". The ", thing, THINGS)
        number(pen, " cost ", 2)
        pen.say(" pence")
    for _ in range(3):
        who = pen.pick(". ", (tom, ann), among=NAMES)
        has = tuple(thing for thing in owner if owner[thing] == who)
        deed = pen.pick(" ", ("saw", "walked", "liked", "gave") if has else ("saw", "walked", "liked"))
        if deed == "saw":
            number(pen, " ", 2)
            pen.pick(" ", BEASTS)
        elif deed == "walked":
            number(pen, " ", 2)
            pen.pick(" miles to the ", PLACES)
        elif deed == "liked":
            pen.pick(" the ", tuple(owner), among=THINGS)
        else:
            other = pen.recall(" ", ann if who == tom else tom, NAMES)
            thing = pen.pick(" the ", has, among=THINGS)
            owner[thing] = other
    thing = pen.pick(". Now the ", tuple(owner), among=THINGS)
    pen.recall(" is with ", owner[thing], NAMES)
    pen.say(".")


# ---- facts ----
FIRST = ("Bel", "Nor", "Tar", "Kes", "Mol", "Fen", "Ros", "Vin")
LAST = ("dor", "vik", "mar", "gun", "lia", "tan", "ron", "by")
GOODS = ("iron", "wool", "honey", "furs", "salt", "oil", "wheat", "beer")
CROWDS = ("people", "boats", "mills", "bears")
REGIONS = ("north", "south", "east", "west")
SIGNS = ("Ω", "Ψ", "Ж", "Я", "א", "क", "ア", "龍", "山", "水", "🦁", "🐺", "🐉", "🐋", "🌙", "🌵")  # rare: spelled in bytes


def facts(pen):
    """A land, its capital and their chronicle, from the encyclopedia of a world that does not exist."""
    land = pen.pick("", FIRST)
    last = {land: pen.pick("", LAST)}
    pen.pick(" is a land in the ", REGIONS)
    pen.recall(". The capital of ", land, FIRST)
    pen.recall("", last[land], LAST)
    city = pen.pick(" is ", without(FIRST, land))
    last[city] = pen.pick("", LAST)
    for _ in range(4):
        number(pen, ". In ", 3)
        place = pen.pick(" ", tuple(last), among=FIRST)
        pen.recall("", last[place], LAST)
        if pen.pick(" ", ("had", "sold", "bought")) == "had":
            number(pen, " ", 2)
            pen.pick(" ", CROWDS)
        else:
            pen.pick(" ", GOODS)
    if pen.pick("", (".", ", under the sign of "), weights=(49, 1)) != ".":
        pen.pick("", SIGNS)
        pen.say(".")


# ---- sums ----
NEXT = {1: (", ",), 2: (", ", ". "), 3: (". ",)}  # after this many columns: another one, or the end


def sums(pen):
    """Column addition of numbers with two or three digits, units first; a carry is written at the head of the column it goes to."""
    name = pen.pick("", NAMES)
    pen.pick(" counts ", BEASTS)
    place = pen.pick(" in the ", PLACES)
    pen.pick(" and the ", without(PLACES, place))
    number(pen, " on day ", 3)
    pen.say(": ")
    carry, total, after = "", "", ", "
    while after == ", ":
        if carry:
            pen.recall("", carry + "+", ("1+", "0+"))
        x = pen.pick("", DIGITS)
        y = pen.pick("+", DIGITS)
        result = str(int(carry or 0) + int(x) + int(y))
        pen.say("=")
        for digit in result:
            pen.recall("", digit, DIGITS)
        carry, total = result[:-1], result[-1] + total
        after = pen.pick("", NEXT[len(total)])
    pen.recall("So ", name, NAMES)
    pen.say(" has ")
    for digit in carry + total:
        pen.recall("", digit, DIGITS)
    pen.say(".")


SOURCES = {"stories": stories, "facts": facts, "sums": sums}


def document(source: str, seed: int, index: int) -> Document:
    """Document `index` of a source's endless series: a pure function of its arguments, the same on every machine."""
    pen = Writer(random.Random(f"{source} {seed} {index}").random)
    SOURCES[source](pen)
    return Document("".join(pen.parts), pen.bits, pen.recall_bits)


def documents(source: str, seed: int) -> Iterator[Document]:
    """Documents 0, 1, 2, … of a source, without end."""
    index = 0
    while True:
        yield document(source, seed, index)
        index += 1


def derive(source: str, text: str) -> Document:
    """Read a text back: the same choices, so exactly the same bits. Raises InputError at the character where it leaves the grammar."""
    pen = Reader(text)
    SOURCES[source](pen)
    if pen.at < len(text):
        raise InputError(f"the text must end at character {pen.at}, got {text[pen.at:][:12]!r}")
    return Document(text, pen.bits, pen.recall_bits)
