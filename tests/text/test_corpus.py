"""The built-in corpus: one text, one derivation; bits that add up; sums that are right; and text that has to be remembered."""

import io
import itertools
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
from helpers import ROOT

from minillama.errors import InputError
from minillama.text import corpus
from minillama.text.corpus import RECALL_SHARE, SHARES, SOURCES, Document, Pen, Reader, derive, document, documents

SOURCE = pytest.mark.parametrize("source", SHARES)


def take(source, count, seed=7):
    return list(itertools.islice(documents(source, seed), count))


@pytest.fixture(scope="module")
def mix():
    """About 1 MB of the 35/40/25 mix, by source."""
    return {source: take(source, round(7500 * share), seed=1) for source, share in SHARES.items()}


@pytest.fixture(scope="module")
def tokenizer(mix):
    """SentencePiece with LLaMA's settings, vocabulary 512, trained on `mix`."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([d.text for docs in mix.values() for d in docs]), model_writer=model, model_type="bpe", vocab_size=512,
        character_coverage=0.99995, byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True, max_sentencepiece_length=16,
        add_dummy_prefix=True, remove_extra_whitespaces=False, normalization_rule_name="identity", unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        unk_surface=" ⁇ ", minloglevel=2, num_threads=1,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def encode(tokenizer, docs):
    """Each document as [<s>, text tokens, </s>]."""
    return [np.array([1, *ids, 2]) for ids in tokenizer.encode([d.text for d in docs])]


def test_shares():
    assert SHARES == {"stories": 0.35, "facts": 0.40, "sums": 0.25} and SHARES.keys() == SOURCES.keys() == RECALL_SHARE.keys()
    assert sum(SHARES.values()) == pytest.approx(1)


@SOURCE
def test_a_document_is_a_pure_function_of_source_seed_and_index(source):
    assert take(source, 20) == [document(source, 7, index) for index in range(20)]
    assert len({document(source, seed, index).text for seed in range(10) for index in range(10)}) == 100


def test_documents_are_the_same_in_another_process():
    code = "from minillama.text.corpus import *\nfor s in SHARES:\n for i in range(50): print(document(s, 3, i))"
    here = "".join(f"{document(source, 3, index)}\n" for source in SHARES for index in range(50))
    for hash_seed in ("0", "1"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONIOENCODING": "utf-8"}
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, encoding="utf-8").stdout == here


@SOURCE
def test_reading_finds_the_same_bits(source):
    for drawn in take(source, 3000):
        assert derive(source, drawn.text) == drawn  # text, bits and recall_bits, exactly


class Inspector(Reader):
    """A reader that insists on what makes a derivation unique: no option is a prefix of another."""

    points = 0

    def _choose(self, options, weights=()):
        for a, b in itertools.permutations(options, 2):
            assert not a.startswith(b), f"{b!r} is a prefix of {a!r}"
        assert all(options) and len(weights) in (0, len(options))
        Inspector.points += len(options) > 1
        return super()._choose(options, weights)


@SOURCE
def test_no_option_is_a_prefix_of_another(source):
    Inspector.points = 0
    for drawn in take(source, 1000):
        SOURCES[source](Inspector(drawn.text))
    assert Inspector.points > 5000


@SOURCE
def test_bits_are_minus_log2_of_the_probability(source):
    """Bits again, by hand: the product of the choices' probabilities, as an exact fraction."""

    class Multiplier(Reader):
        numerator = denominator = 1

        def _choose(self, options, weights=()):
            i = super()._choose(options, weights)
            self.numerator *= weights[i] if weights else 1
            self.denominator *= sum(weights) if weights else len(options)
            return i

    for drawn in take(source, 300):
        pen = Multiplier(drawn.text)
        SOURCES[source](pen)
        assert drawn.bits == pytest.approx(math.log2(pen.denominator) - math.log2(pen.numerator), rel=1e-12)


@SOURCE
def test_the_writer_draws_what_the_bits_say(source):
    """Options come up as often as their probability says: chi-squared, pooled over all choice points."""
    counts = {}

    class Counter(Reader):
        def _choose(self, options, weights=()):
            i = super()._choose(options, weights)
            if len(options) > 1:
                tally, shares = counts.setdefault((tuple(options), weights), ([0] * len(options), weights or (1,) * len(options)))
                tally[i] += 1
            return i

    for drawn in take(source, 3000):
        SOURCES[source](Counter(drawn.text))
    chi2 = freedom = 0
    for tally, shares in counts.values():
        expected = np.array(shares) * sum(tally) / sum(shares)
        if expected.min() >= 5:
            chi2, freedom = chi2 + ((tally - expected) ** 2 / expected).sum(), freedom + len(tally) - 1
    assert freedom > 20 and abs(chi2 - freedom) < 5 * math.sqrt(2 * freedom)


@SOURCE
def test_no_document_is_a_prefix_of_another_so_the_end_costs_nothing(source):
    texts = sorted({d.text for d in take(source, 5000)})
    assert not any(after.startswith(before) for before, after in itertools.pairwise(texts))
    with pytest.raises(InputError, match="must end"):
        derive(source, texts[0] + " Tom")
    for cut in range(len(texts[0])):
        with pytest.raises(InputError, match=r"must go on with one of .* at character \d+, got "):
            derive(source, texts[0][:cut])


def test_a_text_belongs_to_one_source_only():
    for source, other in itertools.permutations(SHARES, 2):
        for drawn in take(source, 50):
            with pytest.raises(InputError):
                derive(other, drawn.text)


@SOURCE
@pytest.mark.parametrize("text", ["", "Once upon a time there was a boy.", "龍", "\n"])
def test_foreign_text_is_refused_at_its_place(source, text):
    with pytest.raises(InputError, match="at character 0"):
        derive(source, text)


class Forgetful(Reader):
    """Notes where each recalled value stands, and what else might stand there."""

    def __init__(self, text):
        super().__init__(text)
        self.places = []

    def recall(self, lead, value, among):
        assert value in among
        end = self.at + len(lead)
        self.places.append((end, value, among))
        return super().recall(lead, value, among)


@SOURCE
def test_what_is_recalled_cannot_be_otherwise(source):
    tried = 0
    for drawn in take(source, 200):
        pen = Forgetful(drawn.text)
        SOURCES[source](pen)
        for place, value, among in pen.places:
            wrong = next(option for option in among if option != value)
            with pytest.raises(InputError, match=r"must go on with one of .* at character \d+, got ") as error:
                derive(source, drawn.text[:place] + wrong + drawn.text[place + len(value) :])
            assert int(re.search(r"character (\d+)", str(error.value))[1]) == place
            tried += 1
    assert tried > 500


def test_every_sum_is_right():
    carried = 0
    for drawn in take("sums", 3000):
        name, places, worked, owner, total = re.fullmatch(r"(\w+) counts (.*) on day \d+: (.*)\. So (\w+) has (\d+)\.", drawn.text).groups()
        columns = [column.split("=") for column in worked.split(", ")]
        assert all(sum(map(int, left.split("+"))) == int(right) for left, right in columns)
        x, y = (int("".join(left.split("+")[k] for left, _ in reversed(columns))) for k in (-2, -1))
        assert int(total) == x + y and name == owner and places
        carries = ["", *(right[:-1] for _, right in columns[:-1])]
        for (left, _), carry in zip(columns, carries):
            assert left.startswith("1+") and left.count("+") == 2 if carry else left.count("+") == 1
        carried += any(carries)
    assert carried > 1500


def test_stories_end_with_the_truth():
    """An independent reading: who was given what, by regular expressions."""
    moved = 0
    for drawn in take("stories", 1000):
        owner = {thing: name for name, thing in re.findall(r"(\w+) had a \w+ (\w+)\.", drawn.text)}
        for giver, receiver, thing in re.findall(r"(\w+) gave (\w+) the (\w+)", drawn.text):
            assert owner[thing] == giver != receiver
            owner[thing] = receiver
            moved += 1
        thing, name = re.search(r"Now the (\w+) is with (\w+)\.$", drawn.text).groups()
        assert owner[thing] == name
    assert moved > 300


@SOURCE
def test_recall_share_is_as_stated(source):
    docs = take(source, 4000)
    recall, bits = (sum(getattr(d, field) for d in docs) for field in ("recall_bits", "bits"))
    assert recall / (recall + bits) == pytest.approx(RECALL_SHARE[source], abs=0.006)


def test_documents_do_not_repeat(mix):
    for docs in mix.values():
        assert len({d.text for d in docs}) > 0.995 * len(docs)


def test_lengths(mix, tokenizer):
    for docs in mix.values():
        lengths = np.array([len(ids) for ids in encode(tokenizer, docs)])
        assert 40 <= lengths.mean() <= 90 and lengths.max() <= 128


def test_byte_fallback_is_used_and_loses_nothing(mix, tokenizer):
    fallen = 0
    for drawn in mix["facts"]:
        ids = tokenizer.encode(drawn.text)
        assert tokenizer.unk_id() not in ids and tokenizer.decode(ids) == drawn.text
        fallen += any(tokenizer.is_byte(i) for i in ids)
    assert fallen >= 5


@SOURCE
def test_a_bigram_stays_60_percent_above_the_floor(source, mix, tokenizer):
    train, held_out = encode(tokenizer, mix[source] + take(source, 6000, seed=2)), take(source, 1000, seed=3)
    counts = np.full((512, 512), 0.02)
    for ids in train:
        np.add.at(counts, (ids[:-1], ids[1:]), 1)
    nats = -np.log(counts / counts.sum(1, keepdims=True))
    cost = sum(nats[ids[:-1], ids[1:]].sum() for ids in encode(tokenizer, held_out))
    assert cost > 1.6 * math.log(2) * sum(d.bits for d in held_out)


def test_a_pen_counts():
    pen = Reader("a rob rob")
    assert isinstance(pen, Pen) and pen.pick("a ", ("rob", "tim", "ann", "eva"), among="12345678") == "rob"
    assert (pen.bits, pen.recall_bits) == (2, 1)
    pen.recall(" ", "rob", ("rob", "tim"))
    assert (pen.bits, pen.recall_bits) == (2, 2)
    assert Document("x", 1.0, 0.0).text == "x" and corpus.DIGITS == "0123456789"
