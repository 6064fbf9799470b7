"""Tokenizer: LLaMA's settings, exact round trips, chunks equal to the whole, errors that name the limit."""
import functools
import hashlib
import io
import itertools
import random
import re

import numpy as np
import pytest
import sentencepiece
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from minillama.errors import InputError
from minillama.text import bpe, model_file
from minillama.text.model_file import SPACE
from minillama.text.tokenizer import Tokenizer

TEXTS = ["""The cat sat on the mat. The dog, who saw the cat, ran after it and barked; the cat ran up the tree!
Москва слезам не верит. 東京は日本の首都です。 👍🏽👍🏽 cafés\tcafé
    if x ==  10:    return 3.14159 + 2024
"""] * 5 + ["once upon a time there was a cat and a dog " * 20]
TOKENIZERS = {str(size): Tokenizer.train(TEXTS, size) for size in (400, 470, "chars")}

texts = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("  \n\tca0129" + SPACE + "東👍\0")), max_size=60)


def test_settings_are_llamas():
    """LLAMA1.md, read back from the trained file; its number of pieces too."""
    settings = TOKENIZERS["470"].settings
    assert settings == {
        "model_type": 2, "character_coverage": 0.99995, "byte_fallback": True, "split_digits": True, "split_by_unicode_script": True,
        "split_by_whitespace": True, "split_by_number": True, "allow_whitespace_only_pieces": True, "max_sentencepiece_length": 16,
        "treat_whitespace_as_suffix": False, "add_dummy_prefix": True, "remove_extra_whitespaces": False, "escape_whitespaces": True,
        "normalization_rule_name": "identity", "unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1, "unk_surface": " ⁇ ",
        "rewrites_text": False}


def test_order_of_ids():
    tokenizer = TOKENIZERS["470"]
    pieces = tokenizer.pieces
    assert tokenizer.vocab_size == len(pieces) == 470
    assert [piece for piece, _, _ in pieces[:3]] == ["<unk>", "<s>", "</s>"]
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert pieces[3:259] == [(f"<0x{byte:02X}>", 0.0, model_file.BYTE) for byte in range(256)]
    assert [score for _, score, _ in pieces[259:]] == [-float(rank) for rank in range(470 - 259)]
    lengths = [len(piece) for piece, _, _ in pieces[259:]]
    assert 1 not in lengths[:lengths.index(1)] and set(lengths[lengths.index(1):]) == {1}           # merges, then characters


def test_same_texts_same_bytes():
    again = Tokenizer.train(iter(TEXTS), 470)
    assert again.model == TOKENIZERS["470"].model
    assert again.fingerprint == TOKENIZERS["470"].fingerprint == hashlib.sha256(again.model).hexdigest()
    assert again.fingerprint != TOKENIZERS["400"].fingerprint


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=200, deadline=None)
@given(text=texts)
@example(text="")
@example(text="   leading and trailing   ")
def test_round_trip(name, text):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text, bos=True, eos=True)
    assert ids[0] == 1 and ids[-1] == 2 and ids[1:-1] == tokenizer.encode(text)
    assert tokenizer.decode(ids) == text.replace(SPACE, " ")
    assert tokenizer.decode(np.array(ids, dtype=np.uint16)) == text.replace(SPACE, " ")
    assert 0 not in ids                                              # no <unk>, ever


def test_what_llama_does_with_numbers_and_strangers():
    tokenizer = TOKENIZERS["470"]
    pieces = lambda text: [tokenizer.pieces[id][0] for id in tokenizer.encode(text)]  # noqa: E731
    assert pieces("2024") == [SPACE, "2", "0", "2", "4"]
    assert pieces("\n") == [SPACE, "<0x0A>"]
    assert pieces("🐢") == [SPACE, *(f"<0x{byte:02X}>" for byte in "🐢".encode())]
    assert pieces("the cat") == [SPACE + "the", SPACE + "cat"]       # the dummy prefix: "the" is the same word first and later


def test_batch():
    tokenizer = TOKENIZERS["470"]
    assert tokenizer.encode_batch(iter(TEXTS), num_threads=2) == [tokenizer.encode(text) for text in TEXTS]


# --------------------------------------------------------------------------------------------------------------------- training

def test_one_token_per_character():
    tokenizer = TOKENIZERS["chars"]
    text = "".join(TEXTS)
    characters = set(text) - set("\n ")
    assert tokenizer.vocab_size == 259 + len(characters) + 1         # and the space
    assert {piece for piece, _, kind in tokenizer.pieces if kind == model_file.NORMAL} == characters | {SPACE}
    assert len(tokenizer.encode(text)) == 1 + len(text)
    assert tokenizer.encode("a\nb")[2] == 3 + ord("\n")


def test_chars_keeps_the_rarest_character():
    tokenizer = Tokenizer.train(["ab " * 30_000 + "é"], "chars")
    assert len(tokenizer.encode("é")) == 2
    assert len(Tokenizer.train(["ab " * 30_000 + "é"], 262).encode("é")) == 3


@pytest.mark.parametrize("text", ["abc abc", "the cat sat on the mat", TEXTS[0]])
def test_limits_of_the_vocabulary_size_are_true(text):
    with pytest.raises(InputError, match=r"vocab_size must be at most .* for this text .*, got 20000$") as error:
        Tokenizer.train([text], 20_000)
    largest = error.value.largest
    assert Tokenizer.train([text], largest).vocab_size == largest
    with pytest.raises(InputError, match=f"vocab_size must be at most {largest} .*, got {largest + 1}$"):
        Tokenizer.train([text], largest + 1)

    with pytest.raises(InputError, match=r"vocab_size must be at least .* for this text .*, got 259$") as error:
        Tokenizer.train([text], 259)
    smallest = int(re.search(r"at least (\d+)", str(error.value))[1])
    assert Tokenizer.train([text], smallest).vocab_size == smallest
    with pytest.raises(InputError, match=f"vocab_size must be at least {smallest} .*, got {smallest - 1}$"):
        Tokenizer.train([text], smallest - 1)
    out = io.BytesIO()
    with pytest.raises(RuntimeError):                                # SentencePiece agrees
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=bpe.split_sentences([text]), model_writer=out, model_type="bpe",
                                                 vocab_size=smallest - 1, byte_fallback=True, character_coverage=0.99995,
                                                 normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=9)


@pytest.mark.parametrize("size, words", [(65537, "vocab_size must be at most 65536 .*, got 65537$"),
                                         ("char", "vocab_size must be a whole number or 'chars', got 'char'$"),
                                         (512.0, "512.0"), (None, "None"), (-5, "vocab_size must be at least .*, got -5$"), (True, "True")])
def test_bad_vocab_size(size, words):
    with pytest.raises(InputError, match=words):
        Tokenizer.train(TEXTS, size)


def test_empty_text():
    for nothing in ([], ["", "\n"]):
        with pytest.raises(InputError, match="empty"):
            Tokenizer.train(nothing, 300)


def test_long_lines_are_not_dropped():
    """SentencePiece alone leaves out lines above 4192 bytes, and lines with U+2585; here each letter is in one such line only."""
    texts = ["short line\n" * 9, "éa " * 4000, "ü" * 20_000, "日" * 5000, "ñ \u2585 ñ", "œ " * 9000 + "\n"]
    pieces = {piece for piece, _, _ in Tokenizer.train(texts, "chars").pieces}
    assert set("éüñ日œ") <= pieces


def test_a_large_text_is_sampled_evenly(monkeypatch):
    """Rare characters at the beginning, in the middle and at the end: all are seen, though only a part of the text is kept."""
    monkeypatch.setattr(bpe, "sample_sentences", functools.partial(bpe.sample_sentences, max_characters=5000))
    lines = ["é the cat\n"] * 500 + ["ñ the mat\n"] * 500 + ["ü the hat\n"] * 500
    assert set("éñü") <= {piece for piece, _, _ in Tokenizer.train(iter(lines), "chars").pieces}


def test_windows_lines():
    tokenizer = Tokenizer.train(["the cat\r\nthe mat\r\n" * 9], "chars")
    assert tokenizer.decode(tokenizer.encode("a\r\nb")) == "a\r\nb"


# ----------------------------------------------------------------------------------------------------------------------- chunks

def cut(text, places):
    places = sorted(min(place, len(text)) for place in places)
    return [text[i:j] for i, j in zip([0, *places], [*places, len(text)])]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=300, deadline=None)
@given(text=st.one_of(texts, st.text("  ctahe" + SPACE, max_size=40), st.text(" \n", max_size=40)),
       places=st.lists(st.integers(0, 60), max_size=8))
def test_chunks_equal_the_whole(name, text, places):
    tokenizer = TOKENIZERS[name]
    assert list(itertools.chain(*tokenizer.encode_chunks(cut(text, places)))) == tokenizer.encode(text)


def test_chunks_of_a_longer_text():
    text = "".join(random.Random(0).choices(TEXTS + ["  ", "\n\n", SPACE * 5, "the", "cat", "1234", "aaaa", " " * 40], k=300))
    for tokenizer in TOKENIZERS.values():
        for size in (1, 7, 1000, 10**6):
            chunks = (text[i:i + size] for i in range(0, len(text), size))
            assert list(itertools.chain(*tokenizer.encode_chunks(chunks))) == tokenizer.encode(text)


@pytest.mark.parametrize("name, text", [("470", ["the cat sat on the mat "] * 50), ("chars", list("thecatsatonthemat"))])
def test_chunks_come_out_as_they_go_in(name, text):
    """Flat memory: ids of a chunk are out before the next-but-one is read."""
    read = 0

    def chunks():
        nonlocal read
        for chunk in text:
            read += 1
            yield chunk

    for number, ids in enumerate(TOKENIZERS[name].encode_chunks(chunks()), start=1):
        assert ids and read <= number + 1


@settings(max_examples=100, deadline=None)
@given(text=st.text("a\n b", max_size=30), places=st.lists(st.integers(0, 30), max_size=5))
def test_chunks_of_a_model_that_joins_newlines(text, places):
    pieces = [("a\n", 0.0), ("\nb", 1.0), ("\n", -2.0), ("a", -3.0), ("b", -4.0), (SPACE + "\n", -1.5), (SPACE, -5.0)]
    learned = [(piece, score, model_file.NORMAL) for piece, score in pieces]
    tokenizer = Tokenizer(bpe.BPE(TOKENIZERS["470"].pieces[:259] + learned).to_bytes())
    assert list(itertools.chain(*tokenizer.encode_chunks(cut(text, places)))) == tokenizer.encode(text)


def test_a_stretch_without_a_cut_is_held_and_stays_exact():
    tokenizer = Tokenizer.train(["aaaa aaaaaaaaaaaaaaaa " * 50], 270)
    text = "a" * 5001
    assert list(itertools.chain(*tokenizer.encode_chunks(cut(text, range(0, 5001, 100))))) == tokenizer.encode(text)


def test_no_chunks():
    assert list(TOKENIZERS["470"].encode_chunks([])) == []
    assert list(TOKENIZERS["470"].encode_chunks(["", ""])) == []


# ------------------------------------------------------------------------------------------------------------------------- files

def foreign(**options):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS[-1:] * 9 + ["The Cat\nsat  there"] * 9),
                                             model_writer=out, minloglevel=3, hard_vocab_limit=False, **{"vocab_size": 60, **options})
    return out.getvalue()


PLAIN = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
FOREIGN = {"unigram": foreign(), "word": foreign(model_type="word"),
           "no prefix": foreign(model_type="bpe", add_dummy_prefix=False, **PLAIN),
           "symbols": foreign(model_type="bpe", vocab_size=340, byte_fallback=True, user_defined_symbols=["a cat", "\n"], **PLAIN)}


@pytest.mark.parametrize("name", FOREIGN)
@settings(max_examples=40, deadline=None)
@given(text=st.text(" \nThecat dog", max_size=40), places=st.lists(st.integers(0, 60), max_size=5))
def test_foreign_models_work_too(name, text, places):
    tokenizer, theirs = Tokenizer(FOREIGN[name]), sentencepiece.SentencePieceProcessor(model_proto=FOREIGN[name])
    ids = theirs.encode(text)
    assert tokenizer.encode(text) == ids and tokenizer.decode(ids) == theirs.decode(ids)
    assert list(itertools.chain(*tokenizer.encode_chunks(cut(text, places)))) == ids
    assume("\n" not in text)
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.finish() == theirs.decode(ids)


def test_save_and_load(tmp_path):
    path = tmp_path / "tokenizer.model"
    for tokenizer in TOKENIZERS.values():                            # the second and third replace a file
        tokenizer.save(path)
        again = Tokenizer.load(path)
        assert again.fingerprint == tokenizer.fingerprint and again.pieces == tokenizer.pieces
        assert again.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokenizer.model"]


def test_load_of_what_is_no_model(tmp_path):
    with pytest.raises(InputError, match=r"none\.model: No such file"):
        Tokenizer.load(tmp_path / "none.model")
    with pytest.raises(InputError, match="it is a folder, not a file"):
        Tokenizer.load(tmp_path)
    for number, content in enumerate([b"", b"hello, this is text", b"\x89PNG\r\n\x1a\n", b"\n\x03abc", TOKENIZERS["400"].model[:2000]]):
        path = tmp_path / f"{number}.model"
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"{number}\.model is not a SentencePiece model"):
            Tokenizer.load(path)


# -------------------------------------------------------------------------------------------------------------------- errors, stream

@pytest.mark.parametrize("id", [-1, 470, 65535])
def test_id_outside_the_vocabulary(id):
    tokenizer = TOKENIZERS["470"]
    with pytest.raises(InputError, match=rf"a token id must be from 0 to 469 \(the vocabulary\), got {id}$"):
        tokenizer.decode([1, id])
    with pytest.raises(InputError, match=rf"a token id must be from 0 to 469 \(the vocabulary\), got {id}$"):
        tokenizer.stream().push(id)


def test_surrogate_is_refused():
    tokenizer, text = TOKENIZERS["470"], "b\udc80"
    for encode in (lambda: tokenizer.encode(text), lambda: tokenizer.encode_batch(["a", text]),
                   lambda: list(tokenizer.encode_chunks(["a", text])), lambda: Tokenizer.train([text], 300)):
        with pytest.raises(InputError, match=r"unpaired surrogate U\+DC80 at character [12]"):
            encode()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 469), st.integers(3 + 0x80, 3 + 0xFF)), max_size=25), texts)
def test_stream_joins_to_decode(noise, text):
    tokenizer = TOKENIZERS["470"]
    ids = noise + tokenizer.encode(text)
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids)


@settings(max_examples=100, deadline=None)
@given(texts, st.integers(0, 30))
def test_stream_after_a_prompt_gives_the_rest(text, length):
    tokenizer = TOKENIZERS["470"]
    ids = tokenizer.encode(text, bos=True)
    stream, whole = tokenizer.stream(ids[:length]), tokenizer.stream()
    shown = whole.push(*ids[:length])
    assert shown + "".join(map(stream.push, ids[length:])) + stream.finish() == text.replace(SPACE, " ")


def test_stream_of_an_emoji():
    tokenizer = TOKENIZERS["470"]
    stream = tokenizer.stream(tokenizer.encode("the"))
    assert [stream.push(id) for id in tokenizer.encode("cat🐢")] == [" cat", "", "", "", "🐢"]
