"""The built-in corpus: three small languages, generated, whose entropy is known to the last bit, so nothing need be downloaded.

One grammar, two hands. A source is an ordinary function that holds a pen: `pen.say` sets down text that cannot be otherwise,
`pen.pick` one of several options, `pen.recall` what the text before it has already decided. A `Writer` draws each choice; a
`Reader` runs the same function along a finished text and finds each choice again. At every choice point no option is a prefix
of another, so a text has exactly one derivation and its probability is the product of its choices' (chain rule: bits add):

    bits(text) = Σ −log2 p(choice)      floor = ln 2 · E[bits] / E[tokens]   nats/token

No model does better on average: cross-entropy ≥ entropy (Gibbs' inequality; Shannon 1948, theorem 9). No document is a prefix
of another either, so the end `</s>` costs nothing, and no text belongs to two sources, so a model of the mixture pays exactly
`−log2 SHARES[source]` more per document, 1.56 bits on average.

`recall_bits` is the other side: what a reader who knows the grammar but remembers nothing would pay on top, log2 of how many
options there would be without memory. It is RECALL_SHARE of (bits + recall_bits), by source.

`SHARES` are LLaMA-1's three rows as our study note has them; the paper's table 1 has seven (67.0 % CommonCrawl, 15.0 % C4, 4.5 % GitHub …).
Lesson: lessons/00_baselines.ipynb.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from minillama.errors import InputError

SHARES = {"stories": 0.35, "facts": 0.40, "sums": 0.25}  # of the documents
DIGITS = "0123456789"


class Document(NamedTuple):
    """One text, what it costs (bits), and what memory saves on it (recall_bits)."""

    text: str
    bits: float
    recall_bits: float


class Pen:
    """What a grammar holds. Every verb takes the literal text that leads up to it, then the options; `_choose` is the hand."""

    def __init__(self):
        self.bits = self.recall_bits = 0.0

    def say(self, literal: str) -> None:
        """Text that cannot be otherwise: 0 bits."""
        self._choose((literal,))

    def pick(self, lead: str, options: Sequence[str], among: Sequence[str] | None = None) -> str:
        """One of `options`, equally likely: log2(len(options)) bits. `among`: what it would be chosen from without memory."""
        if lead:
            self._choose((lead,))
        cost = math.log2(len(options))
        self.bits += cost
        if among:
            self.recall_bits += math.log2(len(among)) - cost
        return options[self._choose(options)]

    def recall(self, lead: str, value: str, among: Sequence[str]) -> str:
        """A value already decided by the text before: 0 bits to whoever remembers it, log2(len(among)) to whoever does not."""
        return self.pick(lead, (value,), among)

    def flip(self, lead: str, rare: str, often: str, odds: int) -> bool:
        """True if `rare` is written (once in `odds`), else `often`."""


class Writer(Pen):
    """Draws every choice from `draw`, a function that returns uniform floats in [0, 1)."""

    def __init__(self, draw: Callable[[], float]):
        super().__init__()
        self.draw, self.parts = draw, []

    def _choose(self, options):
        i = int(self.draw() * len(options)) if len(options) > 1 else 0
        self.parts.append(options[i])
        return i


class Reader(Pen):
    """Finds every choice again in a text, at the cursor `at`."""

    def __init__(self, text: str):
        super().__init__()
        self.text, self.at = text, 0

    def _choose(self, options):
        for i, option in enumerate(options):
            if self.text.startswith(option, self.at):
                self.at += len(option)
                return i
        found = self.text[self.at : self.at + 12]
        raise InputError(f"the text leaves the grammar at character {self.at}: {found!r} stands where one of {list(options)} must")


def without(options, *gone):
    """The options still free."""
    return tuple(option for option in options if option not in gone)


# ---------------------------------------------------------------------------------------------------------------- stories
NAMES = ("Tom", "Ann", "Leo", "Mia", "Sam", "Eva", "Ben", "Zoe")
PLACES = ("barn", "park", "wood", "hut", "yard", "shop", "cave", "mill")
COLOURS = ("red", "blue", "green", "gold", "black", "white", "pink", "grey")
THINGS = ("kite", "drum", "cup", "hat", "ball", "boat", "bell", "book")
BEASTS = ("lions", "bears", "foxes", "owls", "hens", "eagles", "snakes", "goats")


def stories(pen):
    """Two friends, two things, and who has what in the end."""
    tom = pen.pick("", NAMES)
    ann = pen.pick(" met ", without(NAMES, tom))
    pen.pick(" in the ", PLACES)
    pen.recall(". ", tom, NAMES)
    red = pen.pick(" had a ", COLOURS)
    kite = pen.pick(" ", THINGS)
    pen.recall(" and ", ann, NAMES)
    blue = pen.pick(" had a ", without(COLOURS, red))
    drum = pen.pick(" ", without(THINGS, kite))
    thing, owner = {red: kite, blue: drum}, {red: tom, blue: ann}
    for _ in range(3):
        who = pen.pick(". ", (tom, ann), among=NAMES)
        other = ann if who == tom else tom
        has = tuple(colour for colour in owner if owner[colour] == who)
        deed = pen.pick(" ", ("saw", "went", "liked", "gave") if has else ("saw", "went", "liked"))
        if deed == "saw":
            pen.pick(" ", DIGITS[2:])
            pen.pick(" ", BEASTS)
        elif deed == "went":
            pen.pick(" to the ", PLACES)
        elif deed == "liked":
            colour = pen.pick(" the ", tuple(owner), among=COLOURS)
            pen.recall(" ", thing[colour], THINGS)
        else:
            pen.recall(" ", other, NAMES)
            colour = pen.pick(" the ", has, among=COLOURS)
            pen.recall(" ", thing[colour], THINGS)
            owner[colour] = other
    colour = pen.pick(". Now the ", (red, blue), among=COLOURS)
    pen.recall(" ", thing[colour], THINGS)
    pen.recall(" is with ", owner[colour], NAMES)
    pen.say(".")


# ------------------------------------------------------------------------------------------------------------------ facts
FIRST = ("Bel", "Nor", "Tar", "Kes", "Mol", "Fen", "Ros", "Vin")
LAST = ("dor", "vik", "mar", "gun", "lia", "tan", "ron", "by")
GOODS = ("iron", "wool", "honey", "furs", "salt", "oil", "wheat", "beer")
REGIONS = ("north", "south", "east", "west")
CROWDS = ("people", "horses", "boats", "mills")


def facts(pen):
    """A land and its capital, in an encyclopedia of a world that does not exist."""
    land = pen.pick("", FIRST)
    names = {land: pen.pick("", LAST)}
    pen.pick(" is a land in the ", REGIONS)
    pen.recall(". The capital of ", land, FIRST)
    pen.recall("", names[land], LAST)
    city = pen.pick(" is ", without(FIRST, land))
    names[city] = pen.pick("", LAST)
    for _ in range(4):
        subject = pen.pick(". ", (land, city), among=FIRST)
        pen.recall("", names[subject], LAST)
        verb = pen.pick(" ", ("has", "sells", "is"))
        if verb == "has":
            number(pen, " ", 4)
            pen.pick(" ", CROWDS)
        elif verb == "sells":
            pen.pick(" ", GOODS)
            number(pen, " for ", 2)
            pen.say(" pence")
        else:
            number(pen, " ", 3)
            pen.say(" years old")
    pen.say(".")


def number(pen, lead, length):
    """A number of `length` digits, the first one not 0."""
    return pen.pick(lead, DIGITS[1:]) + "".join(pen.pick("", DIGITS) for _ in range(length - 1))


# ------------------------------------------------------------------------------------------------------------------- sums
def sums(pen):
    """Column addition, units first, each carry written where it is added."""
    columns = int(pen.pick("", "345"))
    carry, total, lead = "", "", " digits: "
    for _ in range(columns):
        x = pen.pick(lead, DIGITS)
        y = pen.pick("+", DIGITS)
        if carry:
            pen.recall("+", carry, "01")
        result = str(int(x) + int(y) + int(carry or 0))
        carry, digit = result[:-1], result[-1]
        pen.say("=")
        if carry:
            pen.recall("", carry, "01")
        pen.recall("", digit, DIGITS)
        total = digit + total
        lead = ", "
    pen.say(", so ")
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
        raise InputError(f"the text leaves the grammar at character {pen.at}: {text[pen.at:][:12]!r} stands where it must end")
    return Document(text, pen.bits, pen.recall_bits)
