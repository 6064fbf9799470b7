"""What could be known: how the built-in corpus goes on, token by token, for a reader who knows its grammar and the tokenizer.

    known(t) = -ln P(token t | tokens before it)        nats

P(beginning) is the probability that a document begins so. Every choice of the grammar that lies before the end of the beginning is
decided, since no option is a prefix of another: its probability is a factor. In the one choice that the end cuts through, the
probabilities of the options that still fit are added up. What comes later may be anything, and has probability 1. So what is known of
all characters of a document sums to its information: ln 2 * derive(source, text).bits.

The same holds of its tokens, but a token says more than its characters do: that "▁" is alone, and not the beginning of "▁blue". A text
is cut here where a word ends and no piece reaches across (Tokenizer.may_cut), and the tokenizer turns each *stretch* between two cuts into
tokens on its own. So P(tokens) is a sum over the stretches that may stand at the last cut, of those whose tokens begin like these.

A reader is not told which source it reads, but finds out. So P is the sources' mixture, and a document costs -ln(prior of its source)
more: the same price, once a document, that `evaluate.py` calls which_source. Before it is found out, " met" is no certainty after
"Tom": sums go on with " counts".
"""
import math
from collections import defaultdict
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from ..text.corpus import SHARES, SOURCES, Pen, documents
from ..text.model_file import BYTE

SAMPLE = 100  # documents of each source that the prior is measured on


class Beginning(NamedTuple):
    """The beginning of a document, as one source sees it.

    ln_p:     list of float    ln P(first k characters), k from 0 to as many as fit; begins with 0 and never rises
    ways:     tuple of (str, float)    how it may go on, up to the end of a choice, and the probability; () where nothing more may follow
    complete: bool             it is a whole document
    """

    ln_p: list
    ways: tuple
    complete: bool


class _End(Exception):
    """There is no more text to follow, or it does not fit."""


class _Follower(Pen):
    """Runs the grammar along the beginning of a text."""

    def __init__(self, text):
        super().__init__()
        self.text, self.at, self.ln_p, self.ways = text, 0, [0.0], ()

    def _choose(self, options, weights=()):
        weights = weights or (1,) * len(options)
        fitting, total = list(zip(options, weights, range(len(options)))), sum(weights)
        before, start = self.ln_p[-1], self.at
        while len(fitting[0][0]) > self.at - start:              # an option that is complete is the only one
            place, left = self.at - start, sum(weight for _, weight, _ in fitting)
            if self.at == len(self.text):
                self.ways = tuple((option[place:], weight / left) for option, weight, _ in fitting)
                raise _End
            fitting = [one for one in fitting if one[0][place] == self.text[self.at]]
            if not fitting:
                raise _End
            self.ln_p.append(before + math.log(sum(weight for _, weight, _ in fitting) / total))
            self.at += 1
        return fitting[0][2]


@lru_cache(maxsize=20_000)
def follow(source, text):
    """Read the beginning of a document of a source: Beginning. Where it stops to fit, ln_p has fewer than len(text) + 1 values."""
    pen = _Follower(text)
    try:
        SOURCES[source](pen)
    except _End:
        return Beginning(pen.ln_p, pen.ways, False)
    return Beginning(pen.ln_p, (), pen.at == len(text))


def costs(source, text):
    """What is known of each character in a source's document: list of -ln P(character | those before it), nats, as far as it fits."""
    ln_p = follow(source, text).ln_p
    return [before - after for before, after in pairwise(ln_p)]


class Expectation(NamedTuple):
    """What may come next.

    tokens:  dict    id -> probability, summing to 1
    options: list    of str, what they are the beginning of, up to the next cut; the likeliest first; "</s>": the end of the document
    """

    tokens: dict
    options: list


class PerfectReader:
    """Knows grammar and tokenizer.

    prior: dict    source -> probability at the start of a document. A source's share of the batches is of tokens, so that of documents
                   is proportional to share / mean tokens of a document
    """

    def __init__(self, tokenizer):
        self.tokenizer, self._newline, self._ids = tokenizer, tokenizer.encode("\n"), {}
        weights = {}
        for source, share in SHARES.items():
            texts = [document.text for document, _ in zip(documents(source, 0), range(SAMPLE))]
            weights[source] = share / sum(2 + len(ids) for ids in tokenizer.encode_batch(texts))  # with <s> and </s>
        self.prior = {source: weight / sum(weights.values()) for source, weight in weights.items()}

    def expect(self, tokens):
        """What may follow each token of a text, in one Expectation each: list of T, None from where the text is no document's beginning.

        Args:
            tokens: list of int    <s>, and what the tokenizer makes of the text
        """
        text = self.tokenizer.decode(tokens)
        ln_p = {source: follow(source, text).ln_p for source in self.prior}
        stretches = {}                                           # where one starts -> list of (text, tokens, ln P with all before it)
        ends, start, first, expected = self._ends(tokens), 0, 1, []

        def starting(at):
            if at not in stretches:
                stretches[at] = [
                    (stretch, self._encode(stretch, at), math.log(self.prior[source] * p) + ln_p[source][at])
                    for source in self.prior if at < len(ln_p[source]) for stretch, p in self._stretches(source, text[:at]).items()
                ]
            return stretches[at]

        for t, end in enumerate(ends):
            if t > 1 and ends[t - 1] not in (None, start) and self._may_cut(*text[ends[t - 1] - 1:ends[t - 1] + 1]):
                start, first = ends[t - 1], t                    # token t begins a stretch
            said = tuple(tokens[first:t + 1])                    # of the stretch, so far
            going_on = [(stretch[end - start:] if end is not None else "", ids[len(said)], p) for stretch, ids, p in starting(start)
                        if len(ids) > len(said) and ids[:len(said)] == said] if t else []
            if end is not None and (t == 0 or self._encode(text[start:end], start) == said):  # it may be over: what begins here?
                going_on += [(stretch or "</s>", ids[0], p) for stretch, ids, p in starting(end)]
            if not going_on:
                break
            expected.append(_expectation(going_on))
        return expected + [None] * (len(tokens) - len(expected))

    def sources(self, text):
        """The sources whose documents this is, or begins: list of str."""
        return [source for source in self.prior if len(follow(source, text).ln_p) == len(text) + 1]

    def _ends(self, tokens):
        """Where each token ends in the text, in characters; None inside of a character."""
        stream, ends, length = self.tokenizer.stream(), [], 0
        for id in tokens:
            said = stream.push(id)
            length += len(said)
            ends.append(None if self.tokenizer.pieces[id][2] == BYTE and not said else length)
        return ends

    def _stretches(self, source, before):
        """What may stand between a cut behind `before` and the next cut: {text: probability}; "" is the end of the document."""
        found, waiting = defaultdict(float), [("", 1.0)]
        while waiting:
            stretch, p = waiting.pop(0)
            beginning = follow(source, before + stretch)
            if beginning.complete:
                found[stretch] += p
            for rest, share in beginning.ways:
                longer = stretch + rest
                if before and not stretch and not self._may_cut(before[-1], longer[0]):
                    continue                                     # there is no cut: the stretch before goes on
                cut = next((i for i in range(max(len(stretch), 1), len(longer)) if self._may_cut(longer[i - 1], longer[i])), None)
                if cut:
                    found[longer[:cut]] += p * share
                else:
                    waiting.append((longer, p * share))
        return found

    def _may_cut(self, left, right):
        """True between two characters that no piece joins, and no word."""
        return not (right.isalpha() and (left.isalpha() or left == " ")) and self.tokenizer.may_cut(left, right)

    def _encode(self, stretch, at):
        """Tokens of a stretch that stands at a place: tuple; after a newline, which joins with nothing, none gets a dummy prefix."""
        if not stretch:
            return (self.tokenizer.eos_id,)
        key = stretch, at == 0
        if key not in self._ids:
            ids = self.tokenizer.encode(stretch) if at == 0 else self.tokenizer.encode("\n" + stretch)[len(self._newline):]
            self._ids[key] = tuple(ids)
        return self._ids[key]


def _expectation(ways):
    """Expectation of a list of (text, id, ln P)."""
    peak, tokens, options = max(ln_p for *_, ln_p in ways), defaultdict(float), defaultdict(float)
    for text, id, ln_p in ways:
        tokens[id] += math.exp(ln_p - peak)
        options[text] += math.exp(ln_p - peak)
    total = math.fsum(tokens.values())
    return Expectation({id: p / total for id, p in tokens.items()}, sorted(options, key=lambda text: -round(options[text] / total, 9)))
