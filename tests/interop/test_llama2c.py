"""llama2.c: every byte of both files where its documentation says, files of others come in, broken ones do not."""
import os
import struct

import numpy as np
import pytest
from interop_models import same, small, tokenizer

from minillama import interop
from minillama.errors import InputError
from minillama.interop import llama2c
from minillama.nn import rope_tables
from minillama.text.model_file import FIRST_ID
from minillama.text.tokenizer import Tokenizer


@pytest.fixture
def model():
    return small(rope_theta=10000.0, norm_eps=1e-5)


@pytest.fixture
def folder(model, tmp_path):
    interop.write(tmp_path / "m", model, "llama2c")
    return tmp_path / "m"


def test_every_byte_of_the_model_is_where_run_c_reads_it(folder, model):
    """The order of malloc'ed pointers in run.c's memory_map_weights, written out."""
    config, tensors = model.config, model.tensors
    data = (folder / "model.bin").read_bytes()
    assert struct.unpack_from("<7i", data) == (48, config.hidden_dim, 3, 4, 4, -400, 64)
    names = ("attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3")
    layers = [tensors[f"layers.{layer}.{name}"] for name in names for layer in range(3)]
    blocks = [tensors["tok_embeddings"], *layers, tensors["norm"], *rope_tables(64, 12), tensors["output"]]
    assert data[28:] == b"".join(np.ascontiguousarray(block, "<f4").tobytes() for block in blocks)


def test_every_byte_of_the_tokenizer_is_where_run_c_reads_it(folder):
    data, position, texts = (folder / "tokenizer.bin").read_bytes(), 4, []
    for _ in range(400):
        score, size = struct.unpack_from("<fi", data, position)
        texts.append((data[position + 8:position + 8 + size], score))
        position += 8 + size
    assert position == len(data)
    assert struct.unpack_from("<i", data)[0] == max(len(text) for text, _ in texts)
    assert [text for text, _ in texts[:4]] == [b"<unk>", b"\n<s>\n", b"\n</s>\n", b"<0x00>"]
    for (text, score), (piece, expected, _) in list(zip(texts, tokenizer().pieces))[3:]:
        assert (text.decode(), score) == (piece.replace("▁", " "), expected)
    assert texts[3 + ord("\n")][0] == b"<0x0A>"                  # run.c finds byte b at the id b + 3


def test_round_trip_is_bit_exact(folder, model, tmp_path):
    back = interop.read(folder)
    assert same(model, back)
    assert Tokenizer(back.tokenizer).pieces == tokenizer().pieces
    assert (back.config.max_seq_len, back.config.norm_eps) == (64, 1e-5)
    assert same(model, interop.read(folder / "model.bin"))
    interop.write(tmp_path / "again", back, "llama2c")
    for name in ("model.bin", "tokenizer.bin"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_tied_head_is_a_copy(folder, model):
    """A positive vocabulary, and no output at the end."""
    data = (folder / "model.bin").read_bytes()[:-4 * 400 * 48]
    (folder / "model.bin").write_bytes(data[:20] + struct.pack("<i", 400) + data[24:])
    back = interop.read(folder)
    assert np.array_equal(back.tensors["output"], model.tensors["tok_embeddings"])
    assert np.array_equal(back.tensors["norm"], model.tensors["norm"])


def header(**changes):
    names = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")

    def change(path):
        values = dict(zip(names, struct.unpack_from("<7i", path.read_bytes()))) | changes
        path.write_bytes(struct.pack("<7i", *values.values()) + path.read_bytes()[28:])

    return change


BREAKS = {
    "empty": (lambda p: os.truncate(p, 0), "must have a header of 28 bytes"),
    "truncated": (lambda p: os.truncate(p, 5000), "is not a complete model of llama2.c: its header says 489820 bytes, got 5000"),
    "trailing bytes": (lambda p: os.truncate(p, p.stat().st_size + 4), "its header says [0-9]+ bytes, got [0-9]+"),
    "key heads that do not divide": (lambda p: (header(n_kv_heads=3)(p), os.truncate(p, p.stat().st_size - 4 * 3 * 2 * 12 * 48)),
                                     "n_kv_heads must divide the 4 attention heads, got 3"),
    "other key heads than in the file": (header(n_kv_heads=2), "its header says [0-9]+ bytes, got [0-9]+"),
    "version 1": (lambda p: p.write_bytes(struct.pack("<2i", 0x616B3432, 1) + p.read_bytes()),
                  "the version of llama2.c's format must be 0, got 1"),
    "no layers": (header(n_layers=0), "its header must hold numbers from 1, got 48, 128, 0, "),
    "many layers": (header(n_layers=2**31 - 1), "its header says [0-9]+ bytes, got [0-9]+"),
    "a long context": (header(max_seq_len=2**31 - 1), "its header says [0-9]+ bytes, got [0-9]+"),
    "a large vocabulary": (lambda p: (header(vocab_size=-100_000)(p), os.truncate(p, p.stat().st_size + 4 * 2 * 48 * 99_600)),
                           "vocab_size must be at most 65536, got 100000"),
    "odd heads": (lambda p: (header(n_heads=16, n_kv_heads=16)(p), os.truncate(p, p.stat().st_size - 4 * 64 * 9)),
                  "head_dim must be even .*, got dim 48"),
    "heads that do not divide": (header(n_heads=5, n_kv_heads=5), "its header says [0-9]+ bytes, got [0-9]+"),
    "NaN": (lambda p: p.write_bytes(p.read_bytes()[:-4] + struct.pack("<f", np.nan)), "output holds values that are not finite"),
    "text": (lambda p: p.write_bytes(b"once upon a time there was a llama"), "is not a complete model of llama2.c"),
    "no tokenizer": (lambda p: (p.parent / "tokenizer.bin").unlink(), "tokenizer.bin does not exist"),
    "half a tokenizer": (lambda p: os.truncate(p.parent / "tokenizer.bin", 3000), "tokenizer.bin"),
    "a longer tokenizer": (lambda p: os.truncate(p.parent / "tokenizer.bin", 20_000),
                           "must have exactly 400 pieces, the model's vocabulary, got more"),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_broken_files_are_refused(kind, folder):
    change, message = BREAKS[kind]
    change(folder / "model.bin")
    with pytest.raises(InputError, match=message) as error:
        dict(interop.read(folder).tensors)
    assert "\n" not in str(error.value)


def test_what_the_format_cannot_hold_is_refused(model, tmp_path):
    with pytest.raises(InputError, match=r"rope_theta must be 10000 for llama2\.c, got 500"):
        interop.write(tmp_path / "a" / "m", small(), "llama2c")
    with pytest.raises(InputError, match=r"--dtype must be f32 for llama2\.c, got bf16"):
        interop.write(tmp_path / "a" / "m", model, "llama2c", "bf16")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_run_c_would_misread_is_refused(model):
    pieces = list(tokenizer().pieces)
    pieces[3], pieces[4] = pieces[4], pieces[3]
    from minillama.interop.vocabulary import from_pieces, to_tokenizer_bin

    with pytest.raises(InputError, match="256 bytes must have the ids 0 to 258"):
        to_tokenizer_bin(from_pieces(pieces, "here"))
    assert FIRST_ID == 259
    assert llama2c.NORM_EPS == 1e-5
