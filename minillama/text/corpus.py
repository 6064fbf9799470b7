"""The built-in corpus."""

import math
import random
from collections.abc import Iterator
from typing import NamedTuple

from minillama.errors import InputError

SHARES = {"stories": 0.35, "facts": 0.40, "sums": 0.25}
DIGITS = "0123456789"


class Document(NamedTuple):
    text: str
    bits: float
    recall_bits: float


class Pen:
    def __init__(self):
        self.bits = self.recall_bits = 0.0

    def pick(self, options, weights=None, among=None):
        i = self.choose(options, weights)
        cost = math.log2(len(options)) if weights is None else math.log2(sum(weights) / weights[i])
        self.bits += cost
        if among is not None:
            self.recall_bits += math.log2(len(among)) - cost
        return options[i]

    def recall(self, value, among):
        return self.pick((value,), among=among)


class Writer(Pen):
    def __init__(self, rng):
        super().__init__()
        self.random, self.parts = rng.random, []

    def say(self, literal):
        self.parts.append(literal)

    def choose(self, options, weights):
        if weights is None:
            i = int(self.random() * len(options))
        else:
            mark, i = self.random() * sum(weights), 0
            while mark >= weights[i]:
                mark -= weights[i]
                i += 1
        self.parts.append(options[i])
        return i

    def text(self):
        return "".join(self.parts)


class Reader(Pen):
    def __init__(self, text):
        super().__init__()
        self.text, self.at = text, 0

    def say(self, literal):
        self.choose((literal,), None)

    def choose(self, options, weights):
        for i, option in enumerate(options):
            if self.text.startswith(option, self.at):
                self.at += len(option)
                return i
        raise InputError(
            f"The text leaves the grammar at character {self.at}: {self.text[self.at : self.at + 20]!r} stands "
            f"where {' | '.join(options)[:80]!r} must."
        )


def without(options, *gone):
    return tuple(option for option in options if option not in gone)


NAMES = ("Tom", "Ann", "Leo", "Mia", "Sam", "Eva", "Ben", "Zoe")
PLACES = ("barn", "park", "wood", "hut", "yard", "shop", "cave", "mill")
COLOURS = ("red", "blue", "green", "gold", "black", "white", "pink", "grey")
THINGS = ("kite", "drum", "cup", "hat", "ball", "boat", "bell", "book", "coat", "lamp", "doll", "ring", "rope", "sled", "fish", "mask")


def stories(pen):
    tom = pen.pick(NAMES)
    pen.say(" met ")
    ann = pen.pick(without(NAMES, tom))
    pen.say(" in the ")
    pen.pick(PLACES)
    pen.say(".")
    friends, colour, things = (tom, ann), {}, {tom: [], ann: []}

    def new_thing(owner):
        pen.say(" a ")
        hue = pen.pick(COLOURS)
        pen.say(" ")
        thing = pen.pick(without(THINGS, *colour))
        colour[thing] = hue
        things[owner].append(thing)

    for who in friends:
        pen.say(" " if who is tom else " and ")
        pen.recall(who, NAMES)
        pen.say(" had")
        new_thing(who)
    pen.say(".")
    for _ in range(3):
        pen.say(" ")
        who = pen.pick(tuple(f for f in friends if things[f]), among=NAMES)
        pen.say(" ")
        deed = pen.pick(("gave", "painted", "found"))
        if deed == "found":
            new_thing(who)
        else:
            other = ann if who is tom else tom
            if deed == "gave":
                pen.say(" ")
                pen.recall(other, NAMES)
            pen.say(" the ")
            thing = pen.pick(tuple(things[who]), among=THINGS)
            if deed == "gave":
                things[who].remove(thing)
                things[other].append(thing)
            else:
                pen.say(" ")
                colour[thing] = pen.pick(without(COLOURS, colour[thing]))
        pen.say(".")
    for who in friends:
        pen.say(" Now " if who is tom else " and ")
        pen.recall(who, NAMES)
        pen.say(" has ")
        if not things[who]:
            pen.say("nothing")
        for thing in things[who]:
            if thing is not things[who][0]:
                pen.say(" and ")
            pen.say("the ")
            pen.recall(colour[thing], COLOURS)
            pen.say(" ")
            pen.recall(thing, THINGS)
    pen.say(".")


FIRST = ("Bel", "Nor", "Tar", "Kes", "Mol", "Dra", "Fen", "Gil", "Hus", "Jor", "Lam", "Pir", "Ros", "Sul", "Vin", "Zan")
LAST = ("dor", "vik", "mar", "gun", "lia", "tan", "ron", "by")
LANDS = {"hills": ("iron", "wool", "silver", "stone"), "woods": ("honey", "timber", "furs", "nuts"), "coast": ("salt", "pearls", "crabs", "oil"), "plains": ("wheat", "horses", "beer", "flax")}
GOODS = sum(LANDS.values(), ())
REGIONS = ("north", "south", "east", "west")
BEASTS = ("lion", "wolf", "bear", "crane", "horse", "eagle", "snake", "goat")


def number(pen, length):
    return pen.pick(DIGITS[1:]) + "".join(pen.pick(DIGITS) for _ in range(length - 1))


def repeat(pen, digits):
    for digit in digits:
        pen.recall(digit, DIGITS)


def facts(pen):
    used = []

    def name():
        first = pen.pick(without(FIRST, *used))
        used.append(first)
        return first, pen.pick(LAST)

    def again(n):
        pen.recall(n[0], FIRST)
        pen.recall(n[1], LAST)

    land = name()
    pen.say(" lies in the ")
    pen.pick(REGIONS)
    pen.say(", a land of ")
    kind = pen.pick(tuple(LANDS))
    pen.say(". Its capital is ")
    city = name()
    pen.say(" on the ")
    river = name()
    pen.say(", with ")
    people = number(pen, 4)
    pen.say(" people.")
    left = ["land", "city", "river"]
    openings = {"land": land, "city": city, "river": river}
    for _ in range(3):
        pen.say(" ")
        options = tuple(openings[k][0] for k in left)
        key = left[options.index(pen.pick(options, among=FIRST))]
        left.remove(key)
        pen.recall(openings[key][1], LAST)
        if key == "land":
            pen.say(" sells ")
            pen.pick(LANDS[kind], among=GOODS)
        elif key == "city":
            pen.say(" was built in ")
            number(pen, 3)
        else:
            pen.say(" is ")
            number(pen, 3)
            pen.say(" miles long")
        pen.say(".")
    pen.say(" The ")
    repeat(pen, people)
    pen.say(" of ")
    again(city)
    pen.say(" love the ")
    pen.pick(BEASTS)
    pen.say(" of ")
    again(land)
    pen.say(".")


def sums(pen):
    length = int(pen.pick("34"))
    a = number(pen, length)
    pen.say("+")
    b = number(pen, length)
    pen.say(":")
    carry, total = "0", ""
    for x, y in zip(reversed(a), reversed(b)):
        pen.say(" ")
        pen.recall(x, DIGITS)
        pen.say("+")
        pen.recall(y, DIGITS)
        pen.say("+")
        pen.recall(carry, "01")
        pen.say("=")
        carry, digit = f"{int(x) + int(y) + int(carry):02d}"
        pen.recall(carry, "01")
        pen.recall(digit, DIGITS)
        total = digit + total
    pen.say(" so ")
    repeat(pen, carry.replace("0", "") + total)


SOURCES = {"stories": stories, "facts": facts, "sums": sums}


def document(source: str, seed: int, index: int) -> Document:
    pen = Writer(random.Random(f"{source} {seed} {index}"))
    SOURCES[source](pen)
    return Document(pen.text(), pen.bits, pen.recall_bits)


def documents(source: str, seed: int) -> Iterator[Document]:
    index = 0
    while True:
        yield document(source, seed, index)
        index += 1


def derive(source: str, text: str) -> Document:
    pen = Reader(text)
    SOURCES[source](pen)
    if pen.at != len(text):
        raise InputError("too long")
    return Document(text, pen.bits, pen.recall_bits)
