"""What could be known, against the corpus' own bits, against its hand-made choices, and against documents that are counted."""
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import NATS_OF_A_TEXT

from minillama.look.known import PerfectReader, costs, follow
from minillama.text.corpus import SHARES, SOURCES, derive, document
from minillama.text.tokenizer import Tokenizer

STORY = "Tom met Ann in the barn at 3:05. Tom had a blue kite. The kite cost 12 pence. "
DRAWN = {"source": st.sampled_from(sorted(SOURCES)), "seed": st.integers(0, 2**63 - 1), "index": st.integers(0, 10**9)}


def texts(count, seed):
    return [document(source, seed, i).text for source, share in SHARES.items() for i in range(round(count * share))]


@pytest.fixture(scope="module", params=[512, "chars"])
def reader(request):
    return PerfectReader(Tokenizer.train(texts(2000, seed=1), request.param))


def nats(reader, text):
    """What is known of each token but <s>; the last expectation."""
    ids = reader.tokenizer.encode(text, bos=True)
    expected = reader.expect(ids)
    assert len(expected) == len(ids)
    return [-math.log(before.tokens[id]) for before, id in zip(expected, ids[1:])], expected[-1]


@settings(max_examples=150, deadline=None)
@given(**DRAWN)
def test_characters_cost_the_documents_bits(source, seed, index):
    drawn = document(source, seed, index)
    known = costs(source, drawn.text)
    assert len(known) == len(drawn.text) and min(known) >= 0
    assert abs(math.fsum(known) - drawn.bits * math.log(2)) < NATS_OF_A_TEXT
    assert follow(source, drawn.text).complete and not follow(source, drawn.text[:-1]).complete


@settings(max_examples=60, deadline=None)
@given(**DRAWN)
def test_tokens_cost_the_documents_bits_and_its_source(reader, source, seed, index):
    drawn = document(source, seed, index)
    known, end = nats(reader, drawn.text)
    assert abs(math.fsum(known) - (drawn.bits * math.log(2) - math.log(reader.prior[source]))) < NATS_OF_A_TEXT
    assert end.tokens == {reader.tokenizer.eos_id: 1.0} and end.options == ["</s>"]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**9), sign=st.sampled_from("Ω龍🦁"))
def test_characters_spelled_in_bytes(reader, seed, sign):
    text = document("facts", seed, 0).text.split(", under")[0].rstrip(".") + f", under the sign of {sign}."
    known, _ = nats(reader, text)
    assert abs(math.fsum(known) - (derive("facts", text).bits * math.log(2) - math.log(reader.prior["facts"]))) < NATS_OF_A_TEXT


@pytest.mark.parametrize("reader", [512], indirect=True)
def test_every_expectation_is_a_distribution(reader):
    for text in texts(20, seed=5):
        for before in reader.expect(reader.tokenizer.encode(text, bos=True)):
            assert abs(math.fsum(before.tokens.values()) - 1) < NATS_OF_A_TEXT and before.options


def test_of_the_options_that_still_fit_all_are_counted():
    """blue and black begin with bl; kite is one of eight things, and the second one of seven."""
    known = costs("stories", STORY)
    b = STORY.index("blue")
    wanted = [math.log(8 / 2), 0, math.log(2), 0]
    assert all(abs(a - b) < NATS_OF_A_TEXT for a, b in zip(known[b:b + 4], wanted, strict=True))
    assert abs(known[STORY.index("kite")] - math.log(8)) < NATS_OF_A_TEXT
    assert all(value < NATS_OF_A_TEXT for value in known[STORY.index("The kite"):STORY.index("12")])  # memory knows it
    assert abs(costs("stories", STORY + "Ann had a red b")[-1] - math.log(7 / 4)) < NATS_OF_A_TEXT  # ball, boat, bell, book


def test_a_token_says_where_no_piece_is():
    """Where the words of a choice are tokenised differently, the first token's probability is that of all words which begin with it:
    counted over documents, and not what its characters alone would say."""
    tokenizer = Tokenizer.train(texts(2000, seed=1), 512)
    reader, counts, before = PerfectReader(tokenizer), Counter(), tokenizer.encode(STORY + "Ann had a", bos=True)
    for i in range(2000):
        text = document("stories", 2, i).text
        colour = text.split(" had a ")[2].split(" ")[0]
        counts[tokenizer.encode(f"{STORY}Ann had a {colour} cup", bos=True)[len(before)]] += 1
    expected = reader.expect(before)[-1].tokens
    assert expected.keys() == counts.keys() and len(expected) < 8  # some colours are not one piece
    for id, p in expected.items():
        assert abs(counts[id] / 2000 - p) < 4 * math.sqrt(p * (1 - p) / 2000)


@pytest.mark.parametrize("reader", [512], indirect=True)
def test_the_source_must_be_found_out(reader):
    tokenizer = reader.tokenizer
    after = reader.expect(tokenizer.encode("Tom", bos=True))[-1]
    stories = reader.prior["stories"] / (reader.prior["stories"] + reader.prior["sums"])
    assert set(after.options) == {" met", " counts"}
    assert abs(after.tokens[tokenizer.encode("Tom met", bos=True)[2]] - stories) < NATS_OF_A_TEXT
    assert reader.sources("Tom") == ["stories", "sums"] and reader.sources("Tom met") == ["stories"] and not reader.sources("Tim")


@pytest.mark.parametrize("reader", [512], indirect=True)
def test_the_prior_is_that_of_a_documents_start(reader):
    lengths = {}
    for source in SHARES:
        ids = reader.tokenizer.encode_batch([document(source, 9, i).text for i in range(400)])
        lengths[source] = sum(2 + len(one) for one in ids) / 400
    weights = {source: share / lengths[source] for source, share in SHARES.items()}
    for source, p in reader.prior.items():
        assert abs(p - weights[source] / sum(weights.values())) < 0.01
    assert abs(sum(reader.prior.values()) - 1) < NATS_OF_A_TEXT


@pytest.mark.parametrize("reader", [512], indirect=True)
def test_beyond_the_grammar_nothing_is_known(reader):
    ids = reader.tokenizer.encode("Tom met Tom in the barn", bos=True)
    expected = reader.expect(ids)
    assert ids[3] not in expected[2].tokens and expected[3:] == [None] * (len(ids) - 3)
    for text in ("", "   ", "\n", "</s>", "Ω", "a" * 300, "Tom\u2581met"):
        assert len(reader.expect(reader.tokenizer.encode(text, bos=True))) >= 1
    assert follow("stories", "Tim").ln_p == follow("stories", "T").ln_p and follow("stories", "Tim").ways == ()
    whole = document("sums", 1, 0).text
    assert len(follow("sums", whole + " ").ln_p) == len(whole) + 1 and not follow("sums", whole + " ").complete


@pytest.mark.parametrize("reader", [512], indirect=True)
def test_an_unfinished_word_is_no_mistake_but_no_token_of_the_grammar(reader):
    expected = reader.expect(reader.tokenizer.encode("Tom met An", bos=True))
    assert expected[2].options[0] == " Ann" and expected[-1] is None
    assert reader.sources("Tom met An") == ["stories"]
