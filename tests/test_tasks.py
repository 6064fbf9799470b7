"""Tasks: every answer is right by a check that shares no code with it, and chance is what a guesser scores."""
import itertools
import math
import random
import re

import pytest

from minillama.errors import InputError
from minillama.tasks import TASKS, Z, chance, draw, encode, wilson
from minillama.text import corpus
from minillama.text.tokenizer import Tokenizer

TASK = pytest.mark.parametrize("name", TASKS)


def trials(name, count, seed=3):
    return [draw(name, seed, index, 0)[0] for index in range(count)]


def text_of(trial):
    return "".join(blank.prompt + blank.answer for blank in trial)


def guess(trial, rng):
    """Every answer drawn from its options."""
    return ["".join(rng.choice(place) for place in blank.options) for blank in trial]


@pytest.mark.parametrize("name, step", [("copy", 1), ("reverse", -1)])
def test_names_are_listed_again(name, step):
    for (blank,) in trials(name, 200):
        before, after = re.fullmatch(r"((?:[A-Z][a-z]{2} ?){3}):((?: [A-Z][a-z]{2}){3})\.", blank.prompt + blank.answer).groups()
        assert before.split()[::step] == after.split()
        assert blank.prompt.endswith(":")


def test_brackets_close():
    pairs, prompts = {")": "(", "]": "[", "}": "{"}, set()
    for (blank,) in trials("brackets", 500):
        written, closing = re.fullmatch(r"(.{5}): (.{3})\.", blank.prompt + blank.answer).groups()
        open_ones = []
        for character in written + closing:
            if character in pairs:
                assert open_ones.pop() == pairs[character]
            else:
                open_ones.append(character)
        assert not open_ones
        prompts.add(tuple(character in pairs for character in written))
    assert len(prompts) == 4                                     # any of the four is the one that is closed at once


def test_stories_end_with_who_has_what():
    """Read sentence by sentence, by regular expressions that know nothing of the grammar's code."""
    kept = 0
    for (blank,) in trials("stories", 300):
        corpus.derive("stories", blank.prompt + blank.answer)
        *sentences, last = blank.prompt.split(". ")
        owner = {}
        for sentence in sentences:
            if found := re.fullmatch(r"(\w+) had a \w+ (\w+)", sentence):
                owner[found[2]] = found[1]
            elif found := re.fullmatch(r"(\w+) gave (\w+) the (\w+)", sentence):
                assert owner[found[3]] == found[1]
                owner[found[3]] = found[2]
        thing = re.fullmatch(r"Now the (\w+) is with", last)[1]
        assert blank.answer == f" {owner[thing]}."
        kept += owner[thing] == re.search(rf"(\w+) had a \w+ {thing}\b", blank.prompt)[1]
        friends = re.match(r"(\w+) met (\w+) ", blank.prompt).groups()
        assert blank.options == ((f" {friends[0]}", f" {friends[1]}"), (".",))
    assert 0.6 < kept / 300 < 0.85                               # things do change hands: the first owner is not the answer


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_sums_add_up(columns):
    carried = 0
    for trial in trials(f"sums-{columns}", 200):
        text = text_of(trial)
        head, tail = text.split(": ")
        parts, total = re.fullmatch(r"(.*)\. So \w+ has (\d+)\.", tail).groups()
        parts = [re.fullmatch(r"(1\+)?(\d)\+(\d)=(\d+)", part).groups() for part in parts.split(", ")]
        assert len(parts) == columns
        x, y = (int("".join(part[i] for part in parts[::-1])) for i in (1, 2))
        assert int(total) == x + y and len(total) in (columns, columns + 1)
        carry = 0
        for mark, a, b, result in parts:
            assert int(result) == int(a) + int(b) + carry and (mark is not None) == (carry == 1)
            carry = int(result) // 10
            carried += carry
        asked = [blank.answer for blank in trial if blank.answer]
        assert asked == [*itertools.chain.from_iterable((*(["1"] if mark else []), result) for mark, _, _, result in parts),
                         *([f"{total}."] if columns > 1 else [])]
        assert not re.search(r"=\d", "".join(blank.prompt for blank in trial))       # no sum is handed over
        if columns in (2, 3):
            corpus.derive("sums", text)
        else:
            with pytest.raises(InputError):
                corpus.derive("sums", text)
    assert carried > 50


@TASK
def test_the_answer_is_one_of_each_option(name):
    for trial in trials(name, 100):
        for blank in trial:
            products = {"".join(places) for places in itertools.product(*blank.options[-4:])}
            assert any(blank.answer.endswith(product) for product in products)
            assert all(len(set(place)) == len(place) for place in blank.options)
            lengths = [{len(option) for option in place} for place in blank.options]
            assert sum(map(min, lengths)) <= len(blank.answer) <= sum(map(max, lengths))


@TASK
def test_chance_is_what_a_guesser_scores(name):
    """Measured in full where 50 000 guesses find enough right ones; of every task, blank by blank and place by place."""
    rng, count = random.Random(0), 50_000
    drawn = trials(name, 500)
    expected = sum(map(chance, drawn)) / len(drawn)
    if expected > 1e-3:
        right = sum(guess(trial, rng) == [blank.answer for blank in trial] for trial in itertools.islice(itertools.cycle(drawn), count))
        assert right / count == pytest.approx(expected, abs=4 * math.sqrt(expected / count))
    for trial in drawn[:20]:
        product = 1.0
        for place in itertools.chain.from_iterable(blank.options for blank in trial):
            hits = sum(rng.choice(place) == place[0] for _ in range(2000)) / 2000
            assert hits == pytest.approx(1 / len(place), abs=0.05)
            product /= len(place)
        assert chance(trial) == pytest.approx(product, rel=1e-12)


@pytest.mark.parametrize("name, options", [("copy", 512), ("reverse", 512), ("brackets", 27), ("stories", 2), ("sums-1", 19)])
def test_chance_by_hand(name, options):
    assert all(chance(trial) == pytest.approx(1 / options, rel=1e-12) for trial in trials(name, 20))


@TASK
def test_a_trial_is_a_function_of_its_name_seed_and_number(name):
    shots = TASKS[name].shots + 2
    assert draw(name, 1, 2, shots) == draw(name, 1, 2, shots)
    assert draw(name, 1, 2, 0)[0] == draw(name, 1, 2, shots)[0]
    assert draw(name, 1, 2, 0)[1] == ""
    others = [draw(name, seed, index, shots)[1] for seed, index in ((1, 2), (1, 3), (2, 2))]
    assert len(set(others)) == 3


@TASK
def test_examples_are_solved_trials(name):
    """Each of them has an answer: what a task asks ends with a full stop, and so do the examples, one after the other."""
    trial, before = draw(name, 0, 0, 3)
    mark = {"stories": ". Now the", "copy": ":", "reverse": ":", "brackets": ":"}.get(name, ". So ")
    assert before.count(mark) == 3
    assert before.endswith(". ")
    assert text_of(trial) not in before


@pytest.mark.parametrize("name", ["stories", "sums-2", "sums-3"])
def test_no_training_text_has_them(name):
    """Of whatever seed: here 1337's first thousand documents, asked with the same seed."""
    source = name.split("-")[0]
    trained = {corpus.document(source, 1337, index).text for index in range(1000)}
    assert trained.isdisjoint(text_of(trial) for trial in trials(name, 1000, seed=1337))


def test_wilson():
    """Values of R's prop.test(correct = FALSE), rounded."""
    for right, total, low, high in ((0, 10, 0, 0.2775), (5, 10, 0.2366, 0.7634), (8, 10, 0.4902, 0.9433), (200, 200, 0.9812, 1)):
        assert wilson(right, total) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_wilson_holds_the_true_rate_with_95_percent(rate):
    """Its mean over the binomial distribution, exactly: near 95 %, as its normal approximation is."""
    n, held = 200, 0.0
    for right in range(n + 1):
        low, high = wilson(right, n)
        held += math.comb(n, right) * rate**right * (1 - rate) ** (n - right) * (low <= rate <= high)
    assert held == pytest.approx(math.erf(Z / math.sqrt(2)), abs=0.02)


@pytest.fixture(scope="module")
def tokenizers():
    texts = [corpus.document(source, 5, index).text for source in corpus.SOURCES for index in range(100)]
    return {size: Tokenizer.train(texts, size) for size in (400, "chars")}


@pytest.mark.parametrize("size", [400, "chars"])
@TASK
def test_the_asked_tokens_hold_the_answers(name, size, tokenizers):
    tokenizer = tokenizers[size]
    for index in range(30):
        trial, before = draw(name, 4, index, 1)
        ids, asked = encode(trial, before, tokenizer)
        full = tokenizer.encode(before + text_of(trial), bos=True)
        assert ids == full[:len(ids)] and len(ids) == len(asked)
        assert asked[-1] and not asked[0] and ids[0] == tokenizer.bos_id
        written = [tokenizer.decode(ids[:i]) for i in range(len(ids) + 1)]
        found = "".join(after[len(start):] for start, after, counts in zip(written, written[1:], asked) if counts)
        assert found == "".join(blank.answer for blank in trial)


def test_a_tokenizer_that_lacks_a_character_is_refused(tokenizers):
    class Lossy:
        """As one without byte fallback: a colon is unknown to it."""

        def __init__(self, tokenizer):
            self.tokenizer, self.stream = tokenizer, tokenizer.stream

        def encode(self, text, bos):
            colon = self.tokenizer.encode("a:")[-1]
            return [self.tokenizer.unk_id if id == colon else id for id in self.tokenizer.encode(text, bos=bos)]

    with pytest.raises(InputError, match=r"^this model's tokenizer cannot encode ':', character 11 of '\w{3} \w{3} \w{3}: .*'$"):
        encode(*draw("copy", 0, 0, 0), Lossy(tokenizers["chars"]))
