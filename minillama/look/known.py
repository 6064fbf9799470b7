"""What could be known: the exact probability of how a text goes on, by the grammar of the built-in corpus.

    known(byte k) = -ln P(byte k | bytes before it) = ln P(bytes before k) - ln P(bytes up to k)        nats

P(prefix) is the probability that a document begins with it. Every choice of the grammar that lies before the end of the prefix is
decided, since no option is a prefix of another: its probability is a factor. In the one choice that the end cuts through, the
probabilities of the options that still fit are added up. What comes later may be anything, and has probability 1. So what is known of
all bytes of a document sums to its information: -ln P(document) = ln 2 * derive(source, text).bits.

Bytes of UTF-8 and not characters, because a token may be a part of a character.

A reader is not told which source it reads, but finds out. So P is the sources' mixture, and a document costs -ln(prior of its source)
more: the same price, once a document, that `evaluate.py` calls which_source. Before that is found out " met" is no certainty after
"Tom": sums go on with " counts".

What is not seen: where the tokenizer cut. A token that is only the beginning of a word says, too, that the word is not one piece. A text
in tokens therefore holds exactly this information in all, but a single token may cost a perfect model a little less or more.
"""
import math
from functools import lru_cache
from typing import NamedTuple

from ..text.corpus import SHARES, SOURCES, Pen, documents

AHEAD = 24  # bytes: certain text is shown up to here
SAMPLE = 100  # documents of each source that the prior is measured on


class Prefix(NamedTuple):
    """The beginning of a document, as one source sees it.

    ln_p:     list of float        ln P(first k bytes), k from 0 to as many as fit; 0, then never rising
    complete: bool                 it is a whole document
    options:  tuple of str         how it may go on; empty for a whole document, and where it does not fit to its end
    """

    ln_p: list
    complete: bool
    options: tuple


class _End(Exception):
    """Nothing more is to be read."""


class _Follower(Pen):
    """Runs along the beginning of a text, and a little further where there is only one way."""

    def __init__(self, data):
        super().__init__()
        self.data, self.at, self.ln_p, self.certain, self.options = data, 0, [0.0], b"", ()

    def _choose(self, options, weights=()):
        weights = weights or (1,) * len(options)
        fitting = [(option.encode(), weight, i) for i, (option, weight) in enumerate(zip(options, weights))]
        before, total, start = self.ln_p[-1], sum(weights), self.at
        while len(fitting[0][0]) > self.at - start:              # an option that is complete is the only one
            if self.at == len(self.data):
                return self._ahead(fitting, self.at - start)
            byte, place = self.data[self.at], self.at - start
            fitting = [one for one in fitting if one[0][place] == byte]
            if not fitting:
                raise _End
            self.ln_p.append(before + math.log(sum(weight for _, weight, _ in fitting) / total))
            self.at += 1
        return fitting[0][2]

    def _ahead(self, fitting, place):
        """Behind the end: go on as long as there is one option only."""
        rests = [self.certain + option[place:] for option, _, _ in fitting]
        self.options = tuple(rest.decode("utf-8", "replace") for rest in rests)
        if len(rests) > 1 or len(rests[0]) >= AHEAD:
            raise _End
        self.certain = rests[0]
        return fitting[0][2]


@lru_cache(maxsize=20_000)
def follow(source, data):
    """Read the beginning of a document.

    Args:
        source: str      of SOURCES
        data:   bytes    UTF-8

    Returns:
        Prefix; fewer than len(data) + 1 values in ln_p where it stops to fit
    """
    pen = _Follower(data)
    try:
        SOURCES[source](pen)
        complete = pen.at == len(data) and not pen.certain
    except _End:
        complete = False
    return Prefix(pen.ln_p, complete, pen.options)


def measured_prior(tokenizer):
    """How probable each source is at the start of a document: {source: probability}, summing to 1.

    Shares are by token, so a source with short documents begins more of them: proportional to share / mean tokens of a document.
    """
    weights = {}
    for source, share in SHARES.items():
        texts = [document.text for document, _ in zip(documents(source, 0), range(SAMPLE))]
        weights[source] = share * SAMPLE / sum(2 + len(ids) for ids in tokenizer.encode_batch(texts))  # with <s> and </s>
    total = sum(weights.values())
    return {source: weight / total for source, weight in weights.items()}


class Known:
    """What is known along one text.

    data:  bytes    the text
    prior: dict     source -> probability
    fits:  int      so many of its bytes are the beginning of a document of any source; where it is less than len(data), the next one is
                    impossible
    """

    def __init__(self, data, prior):
        self.data, self.prior = data, prior
        self.by_source = {source: follow(source, data) for source in prior}
        self.fits = max(len(one.ln_p) for one in self.by_source.values()) - 1

    def ln_p(self, end):
        """ln P(first `end` bytes) of the mixture, nats; -inf where they do not fit."""
        return _ln_sum(math.log(self.prior[source]) + one.ln_p[end] for source, one in self.by_source.items() if end < len(one.ln_p))

    def cost(self, start, end):
        """-ln P(bytes start .. end | bytes before), nats: float; None where they are impossible, or what is before them is."""
        return max(self.ln_p(start) - self.ln_p(end), 0.0) if end <= self.fits else None  # never -0.0

    @property
    def source(self):
        """The source whose document this is, or begins; None if several fit, or none to the end."""
        fitting = [source for source, one in self.by_source.items() if len(one.ln_p) == len(self.data) + 1]
        return fitting[0] if len(fitting) == 1 else None

    def _sources(self, end):
        return [source for source, one in self.by_source.items() if end < len(one.ln_p)]

    def options(self, start):
        """How the first `start` bytes may go on: list of str; None where they do not fit. The end of a document is "</s>"."""
        if start > self.fits:
            return None
        ways = {}
        for source in self._sources(start):
            prefix = follow(source, self.data[:start])
            ways |= dict.fromkeys(("</s>",) if prefix.complete else prefix.options)
        return list(ways)

    def probability(self, start, data):
        """P(the next bytes are `data` | the first `start` bytes): float; data None: P(the document ends here). None where they do not fit."""
        if start > self.fits:
            return None
        ln_p = []
        for source in self._sources(start):
            prefix = follow(source, self.data[:start] + (data or b""))
            if prefix.complete if data is None else len(prefix.ln_p) == start + len(data) + 1:
                ln_p.append(math.log(self.prior[source]) + prefix.ln_p[-1])
        return math.exp(_ln_sum(ln_p) - self.ln_p(start))


def _ln_sum(ln_p):
    """ln of a sum, from the terms' logarithms; -inf for no term."""
    terms = list(ln_p)
    largest = max(terms, default=-math.inf)
    return largest + math.log(math.fsum(math.exp(term - largest) for term in terms)) if terms else largest
