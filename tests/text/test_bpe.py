"""bpe.py against SentencePiece itself: the same ids, the same texts, the same merges, the same file."""
import io
import itertools
import random
import struct
import subprocess
import sys

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minillama import files
from minillama.errors import InputError
from minillama.text import bpe, corpus, model_file
from minillama.text.bpe import BPE, TextStream, train_bpe
from minillama.text.model_file import BYTE_PIECES, SPACE, SPECIALS
from minillama.text.tokenizer import Tokenizer

SAMPLE = """Once upon a time a little cat sat by the old river. The cat saw a big red ball, and the ball rolled away!
"Where is it?" said the cat. She looked and looked, under the tree and behind the house, until she found it again.
Paris lies on the Seine. Москва стоит на реке Москве, и в Москве много мостов. 東京は日本の首都です。東京には川があります。
القاهرة عاصمة مصر. दिल्ली भारत की राजधानी है। Αθήνα, η πόλη της Αθήνας. 서울은 대한민국의 수도이다. ชื่อของเมือง
We ate 🍎🍎 and 🍐, then the family 👨‍👩‍👧 went home ❤️ 👍🏽 👍🏽. Cafe\u0301s, cafés, naïve, ﬁne, Straße, ﹏ ＡＢＣ１２３.
12+345=357; 99+1=100; 7*8=56; 3.14159; in 1984 and 2024.
    def cat(n):
        if n == 0:  return    1
        return  n *  cat(n - 1)\t# tabs\tand  spaces
"""
TEXTS = [SAMPLE * 3, SAMPLE.lower(), SAMPLE.upper(), "\n".join(f"{a}+{b}={a + b}" for a in range(40) for b in range(0, 90, 7))]


def artificial():
    """LLaMA-like, with what LLaMA's own file has and more: scores out of order, equal scores, ▁▁ at -1e9, positive scores."""
    pieces = {"ab": -1.0, "bc": -1.0, "abc": -5.0, "aa": -2.0, "aaa": -2.0, "aaaa": -2.0, SPACE * 2: -1e9, SPACE * 4: -3.0,
              SPACE + "a": -2.0, "cab": 4.0, "ca": -9.0, "日本": -1.5, "本日": -1.5, "🍎🍎": 0.0, "</": -4.0, "</s": -4.5, "é\u0301": -0.25}
    characters = dict.fromkeys("abc日本🍎</s>é\u0301" + SPACE, -100.0)
    learned = [(piece, score, model_file.NORMAL) for piece, score in (pieces | characters).items()]
    return BPE(SPECIALS + [(piece, 0.0, model_file.BYTE) for piece in BYTE_PIECES] + learned)


MODELS = {str(size): Tokenizer.train(TEXTS, size).model for size in (512, 900, "chars")}
MODELS["english"] = Tokenizer.train(["the cat sat on the mat   and the  dog ran " * 9], 300).model       # knows few characters
MODELS["artificial"] = artificial().to_bytes()
BOTH = {name: (BPE.from_bytes(model), sentencepiece.SentencePieceProcessor(model_proto=model)) for name, model in MODELS.items()}

unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
words = st.sampled_from(["the cat", " ", "  ", "     ", SPACE, SPACE * 3, "\n", "\r\n", "\t", "\0", "0", "12", "１２", "a", "aaaa", "aaaaa",
                         "ab", "abc", "cab", "日本", "日本日本", "東京は", "🍎🍎", "👨\u200d👩\u200d👧", "👍🏽", "❤️", "é", "e\u0301",
                         "Москве", "<s>", "</s>", "<unk>", "<0x0A>", "\ufeff", "\xa0", "\u3000", "\ufffd", "\uffff", "\U0010ffff",
                         "\u2585", "\x1f"])
biased_text = st.lists(words, max_size=12).map("".join)
repeated_text = st.tuples(st.sampled_from(["a", "ab", " ", SPACE, "🍎", "\n", "7"]), st.integers(0, 60)).map(lambda pair: pair[0] * pair[1])
any_text = st.one_of(unicode_text, biased_text, biased_text, repeated_text)


# ---------------------------------------------------------------------------------------------------------- encode and decode

@pytest.mark.parametrize("name", BOTH)
@settings(max_examples=200, deadline=None)
@given(text=any_text)
@example(text="")
@example(text=" ")
@example(text=SAMPLE)
def test_encode_is_sentencepiece(name, text):
    own, theirs = BOTH[name]
    assert own.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("name", BOTH)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_decode_is_sentencepiece(name, data):
    own, theirs = BOTH[name]
    utf8 = st.sampled_from("é日👍\u0301".encode() + b"\xf0\x9f\xe3\xed\xa0\xc0\xf5 a\n").map(lambda byte: byte + 3)
    ids = data.draw(st.lists(st.one_of(st.integers(0, own.vocab_size - 1), utf8, utf8, st.just(own.ids[SPACE])), max_size=16))
    assert own.decode(ids) == theirs.decode(ids)


def test_scores_not_ids_decide():
    own = artificial()
    ids = own.encode("a  b")
    assert [own.pieces[id][0] for id in ids] == [SPACE + "a", SPACE * 2, "b"]
    assert [own.pieces[id][0] for id in own.encode("日本日")] == [SPACE, "日本", "日"]                    # equal scores: leftmost


def test_bos_eos():
    own, theirs = BOTH["512"]
    assert own.encode("cat", bos=True, eos=True) == theirs.encode("cat", add_bos=True, add_eos=True) == [1, *own.encode("cat"), 2]
    assert own.encode("", bos=True) == [1]
    assert own.decode([1, *own.encode("cat"), 2]) == "cat"


def test_encode_of_a_long_text_is_quick():
    own, theirs = BOTH["english"]
    text = "a" * 20_000 + " the" * 5_000
    assert own.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff"])
def test_surrogate_is_refused(text):
    with pytest.raises(InputError, match=r"text must have only the characters .*, got an unpaired surrogate U\+D[8F]"):
        artificial().encode(text)
    with pytest.raises(InputError, match="unpaired surrogate"):
        train_bpe([text], 300)


def test_text_must_be_str():
    with pytest.raises(InputError, match=r"text must be a str, got bytes$"):
        artificial().encode(b"abc")


@pytest.mark.parametrize("id", [-1, 512, 10**9])
def test_id_outside_vocabulary(id):
    with pytest.raises(InputError, match=rf"a token id must be from 0 to 511 \(the vocabulary\), got {id}$"):
        BOTH["512"][0].decode([5, id])


def test_no_sentencepiece_behind_it():
    code = "import sys, minillama.text.bpe; sys.exit('sentencepiece' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ------------------------------------------------------------------------------------------------------------------ streaming

@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 511), max_size=20), st.text(max_size=10))
def test_stream_joins_to_decode(noise, text):
    own = BOTH["512"][0]
    ids = noise + own.encode(text)
    stream = TextStream(own.pieces)
    assert "".join([stream.push(id) for id in ids] + [stream.finish()]) == own.decode(ids)


def test_stream_holds_back_what_is_no_character_yet():
    stream = TextStream(artificial().pieces)
    assert [stream.push(byte + 3) for byte in "👍é".encode()] == ["", "", "", "👍", "", "é"]
    assert stream.push(0xF0 + 3) == ""
    assert stream.push(ord("!") + 3) == "\ufffd!"                   # it cannot become one any more
    assert stream.push(0xF0 + 3, 0x9F + 3) == ""
    assert stream.finish() == "\ufffd\ufffd"
    assert stream.finish() == ""


def test_stream_drops_the_first_space_only():
    own = artificial()
    space, a = own.ids[SPACE], own.ids[SPACE + "a"]
    assert own.decode([a, a]) == "a a"
    assert own.decode([space, a]) == " a"
    assert own.decode([1, a]) == "a"
    assert own.decode([3, a]) == "\0 a"
    assert own.decode([0, a]) == " ⁇  a"


# ------------------------------------------------------------------------------------------------------------- the .model file

def test_file_round_trip(tmp_path):
    for name, (own, _) in BOTH.items():
        path = tmp_path / f"{name}.model"
        own.save(path)
        assert BPE.load(path).pieces == own.pieces
        theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
        assert theirs.encode(SAMPLE) == own.encode(SAMPLE)
        assert [(theirs.id_to_piece(id), theirs.get_score(id)) for id in range(len(theirs))] == [piece[:2] for piece in own.pieces]
        assert (theirs.unk_id(), theirs.bos_id(), theirs.eos_id(), theirs.pad_id()) == (0, 1, 2, -1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.model" for name in BOTH)     # nothing temporary left


def test_written_settings_are_llamas():
    _, read = model_file.parse_model(artificial().to_bytes())
    assert {name: read[name] for name in model_file.SETTINGS} == {name: value for name, (_, _, _, value) in model_file.SETTINGS.items()}


def train_other(**changes):
    """A SentencePiece model with LLaMA's settings but for the changes."""
    values = {name: value for name, (_, _, _, value) in model_file.SETTINGS.items()} | {"model_type": "bpe", "vocab_size": 330}
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(["the cat sat on a mat"] * 3), model_writer=out, minloglevel=3,
                                             hard_vocab_limit=False, **values | changes)
    return out.getvalue()


@pytest.mark.parametrize("changes, words", [
    ({"model_type": "unigram"}, "model_type must be 2, got 1$"),
    ({"byte_fallback": False}, "byte_fallback must be True, got False$"),
    ({"normalization_rule_name": "nmt_nfkc"}, "normalization_rule_name must be 'identity', got 'nmt_nfkc'$"),
    ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces must be False, got True$"),
    ({"add_dummy_prefix": False}, "add_dummy_prefix must be True, got False$"),
    ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix must be False, got True$"),
    ({"unk_surface": "?"}, r"unk_surface must be ' \u2047 ', got '\?'$"),
    ({"user_defined_symbols": ["cat"]}, "'cat'.* must be of kind 1 .*, got kind 4$"),
    ({"bos_id": -1}, "must have the control pieces <s> and </s>, got no control piece <s>$"),
])
def test_other_models_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        BPE.from_bytes(train_other(**changes), "other.model")


def test_control_pieces_are_text_like_any_other():
    model = train_other(control_symbols=["<mask>", "cat"])
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in ["a<mask>cat", "cat", "<s>the cat</s>"]:
        assert BPE.from_bytes(model).encode(text) == theirs.encode(text)


@pytest.mark.parametrize("change, words", [
    (lambda pieces: pieces[:100], "must have 1 unknown and 256 byte pieces, got 1 unknown and 97 byte$"),
    (lambda pieces: pieces + [("x", 0.0, model_file.NORMAL)] * 2, "must be distinct, got 'x' as piece 289 and as piece 290$"),
    (lambda pieces: pieces + [("", 0.0, model_file.NORMAL)], "piece 289 must have at least 1 character, got ''$"),
    (lambda pieces: pieces + [("x", float("nan"), model_file.NORMAL)], "must have a finite score, got nan$"),
    (lambda pieces: pieces + [("x", 0.0, model_file.UNUSED)], "must be of kind 1 .*, got kind 5$"),
    (lambda pieces: pieces + [("<0xZZ>", 0.0, model_file.BYTE)], "must be one of <0x00> to <0xFF>, got '<0xZZ>'$"),
    (lambda pieces: pieces + [("<unk2>", 0.0, model_file.UNKNOWN)], "must have 1 unknown and 256 byte pieces, got 2 unknown and 256 byte$"),
])
def test_bad_vocabularies_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        BPE(change(artificial().pieces))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused_or_read_but_never_crash(data):
    model = bytearray(MODELS["english"])
    how = data.draw(st.sampled_from(["cut", "change", "remove", "noise"]))
    if how == "noise":
        model = data.draw(st.binary(max_size=80))
    else:
        at = data.draw(st.integers(0, len(model) - 1))
        if how == "cut":
            del model[at:]
        elif how == "remove":
            del model[at:at + data.draw(st.integers(1, 30))]
        else:
            model[at] = data.draw(st.integers(0, 255))
    try:
        BPE.from_bytes(bytes(model)).encode("the cat")
    except InputError as error:
        assert "the model" in str(error) or "piece" in str(error)


def test_a_length_beyond_the_end_is_refused():
    with pytest.raises(ValueError, match="damaged at byte 2 of 5"):
        list(model_file.read_fields(b"\x12\x04abc"))
    with pytest.raises(InputError, match="damaged"):
        BPE.from_bytes(MODELS["english"][:-1])


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"old")

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(InputError, match="No space left"):
        artificial().save(path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.model: No such file"):
        BPE.load(tmp_path / "nowhere.model")
    with pytest.raises(InputError, match="cannot write"):
        artificial().save(tmp_path / "nowhere" / "x.model")


def test_protobuf_by_hand():
    message = bytes([0x08, 0x96, 0x01, 0x12, 0x02, 0x68, 0x69]) + b"\x1d" + struct.pack("<f", 0.5) + b"\x21" + bytes(8)
    assert list(model_file.read_fields(message)) == [(1, 150), (2, b"hi"), (3, struct.pack("<f", 0.5)), (4, bytes(8))]
    assert [model_file._field(1, 150), model_file._field(2, "hi"), model_file._field(3, 0.5)] == [message[:3], message[3:7], message[7:12]]
    negative = model_file._field(43, -1)
    assert len(negative) == 12
    assert model_file._from_wire(next(model_file.read_fields(negative))[1], -1) == -1


# -------------------------------------------------------------------------------------------------------------------- training

def test_merges_by_hand():
    """Sennrich's example. e s and s t stand 9 times, "es" comes first. That leaves es t 9, l o and o w 7, then e w, n e and w est 6."""
    words = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
    assert bpe.learn_merges(words, list("lowernstid"), 7) == ["es", "est", "lo", "low", "ew", "new", "newest"]


@pytest.mark.parametrize("size", [520, 700, 1000])
def test_training_is_sentencepieces(size):
    assert train_bpe(TEXTS, size).pieces == Tokenizer.train(TEXTS, size).pieces


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text("aaab ", max_size=25) | st.text("abc 1日本が🍎\u200d\u0301Жα\t\r\x1f\n" + SPACE),
                min_size=1, max_size=9))
@example(["<s>ab<0x41>ab", "ab<unk>ab"])
@example(["a\0a b\0b"])
@example(["ab\r", "ab\r\n\r", "\r"])
def test_ties_break_as_in_sentencepiece(texts):
    """Small texts in small alphabets are all ties; every merge there is, to the last pair that has died out."""
    try:
        theirs = Tokenizer.train(texts, 5000)
    except bpe.VocabularyTooLarge as error:
        theirs = Tokenizer.train(texts, error.largest)
    except InputError:
        return
    assert train_bpe(texts, theirs.vocab_size).pieces == theirs.pieces


def test_training_on_the_built_in_corpus_is_sentencepieces():
    texts = []
    for source in ("stories", "facts", "sums"):
        size = 0
        for document in corpus.documents(source, seed=0):
            texts.append(document.text)
            size += len(document.text)
            if size > 100_000:
                break
    random.Random(0).shuffle(texts)
    try:
        theirs = Tokenizer.train(texts, 512)
    except InputError as error:                    # a corpus of few words has fewer pieces
        theirs = Tokenizer.train(texts, int(str(error).split()[-1]))
    own = train_bpe(texts, theirs.vocab_size)
    assert own.pieces == theirs.pieces
    assert own.encode(texts[0]) == theirs.encode(texts[0])


def test_more_frequent_then_shorter_then_first():
    merges = bpe.learn_merges({"xy": 3, "ba": 2, "ab": 2, "cde": 2}, list("abcdexy"), 9)
    assert merges == ["xy", "ab", "ba", "cd", "cde", "de"]           # "de" died out with cd + e, and is taken last


def test_every_place_of_a_pair_counts():
    assert bpe.learn_merges({"aaa": 2, "bc": 3}, list("abc"), 1) == ["aa"]


def test_rare_characters_become_bytes():
    text = "ab " * 20_000 + "é"
    own = train_bpe([text], 262)
    assert "é" not in own.ids and own.decode(own.encode("aéb")) == "aéb"
    assert own.pieces == Tokenizer.train([text], 262).pieces
    assert "é" in train_bpe([text], 263, character_coverage=1.0).ids


@pytest.mark.parametrize("rare, learned", [("é", False), ("éé", True)])
def test_coverage_is_reached_exactly(rare, learned):
    """20,000 characters, of which 0.99995 must be covered: 19,999 are enough, 19,998 are not."""
    text = ("a" * 999 + "\n") * 20                                   # with the space before each line, 20,000
    text = text[:-1 - len(rare)] + rare
    own = train_bpe([text], 270)
    assert own.pieces == Tokenizer.train([text], 270).pieces
    assert ("é" in own.ids) is learned


@pytest.mark.parametrize("piece, allowed", [
    ("ab", True), (SPACE + "ab", True), (SPACE * 3, True), (SPACE * 2 + "a", False), ("a" + SPACE, False), ("a1", False), ("12", False),
    (SPACE + "1", False), ("１a", False), ("a" * 16, True), ("a" * 17, False), ("aж", False), ("ひカ漢", True), ("e\u0301", True),
    ("a-", False), ("--", True), ("👨\u200d👩", True), ("क्ष", True), ("क१", True), ("a▅", False)])
def test_may_merge(piece, allowed):
    assert bpe.may_merge(piece) is allowed


def test_words():
    assert bpe.count_words(["a  bc a", "  "]) == {SPACE + "a": 2, SPACE * 2 + "bc": 1, SPACE * 3: 1}


def test_sentences_lose_nothing():
    assert list(bpe.split_sentences(["a b\nc\n\n", "d", "", "x\u2585y", "e\r\nf"])) == ["a b", "c", "d", "x", "y", "e", "f"]
    line = " ".join(f"word{i}" for i in range(5000))
    sentences = list(bpe.split_sentences([line]))
    assert " ".join(sentences) == line and max(map(len, sentences)) <= bpe.MAX_SENTENCE
    assert "".join(bpe.split_sentences(["日" * 2500])) == "日" * 2500
    spaces = "a" + "  b" * 1000
    assert "".join(bpe.split_sentences([spaces])) == spaces          # no single space: cut where the limit is, nothing taken out


def test_sample_is_even_and_bounded():
    sentences = [f"{i:04d}" for i in range(1000)]
    assert bpe.sample_sentences(sentences, 4000) == sentences
    assert bpe.sample_sentences(sentences, 3999) == sentences[::2]
    assert bpe.sample_sentences(sentences, 100) == sentences[::64]
    assert bpe.sample_sentences(iter(["x" * 50]), 10) == ["x" * 50]


def test_sample_holds_little_of_an_endless_text():
    read = itertools.islice(itertools.cycle(["some words here"]), 50_000)
    assert len(bpe.sample_sentences(read, 1500)) <= 100


@pytest.mark.parametrize("size, words", [(258, "vocab_size must be at least 263 .* 4 .*, got 258$"),
                                         (5000, "vocab_size must be at most 269 .*, got 5000$"), (65537, "at most 65536 .*, got 65537$"),
                                         (300.0, r"whole number .*, got 300\.0$"), (True, "whole number .*, got True$")])
def test_bad_vocab_size(size, words):
    with pytest.raises(InputError, match=words):
        train_bpe(["abc abc"], size)


def test_empty_text():
    for texts in ([], [""], ["\n\r\n"]):
        with pytest.raises(InputError, match="empty"):
            train_bpe(texts, 300)
