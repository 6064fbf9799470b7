"""The SentencePiece `.model` file, read and written by hand: a protobuf of pieces with scores, and the settings they were made with.

    file     = field 1 (piece) ... field 1 (piece)  field 2 (trainer settings)  field 3 (normaliser settings)
    piece    = field 1 text   field 2 score, float32   field 3 kind

Protocol Buffers, encoding: https://protobuf.dev/programming-guides/encoding; field numbers of sentencepiece_model.proto.
Used by bpe.py and tokenizer.py.
"""
import struct

from minillama.errors import InputError
from minillama.files import atomic, read_bytes

SPACE = "\u2581"                                   # ▁, how a space is written inside pieces
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6          # a piece's kind, SentencePiece's numbers
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIALS = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
FIRST_ID = len(SPECIALS) + len(BYTE_PIECES)        # 259: ids 0-2 special, 3-258 bytes, then merges, then characters
MAX_VOCAB_SIZE = 65536                             # token ids are stored as uint16
MAX_BYTES = 20_000_000                             # of a tokenizer's file; LLaMA's files have at most a tenth of it

# LLaMA's settings. name: (message of the .model file, field number, value if the file has none, LLaMA's value)
SETTINGS = {
    "model_type": ("trainer", 3, 1, 2),                                # 2 = BPE
    "character_coverage": ("trainer", 10, 0.9995, 0.99995),            # the rarest 1 in 20,000 characters become bytes
    "max_sentencepiece_length": ("trainer", 20, 16, 16),
    "split_by_unicode_script": ("trainer", 21, True, True),
    "split_by_whitespace": ("trainer", 22, True, True),
    "split_by_number": ("trainer", 23, True, True),
    "treat_whitespace_as_suffix": ("trainer", 24, False, False),
    "split_digits": ("trainer", 25, False, True),
    "allow_whitespace_only_pieces": ("trainer", 26, False, True),
    "byte_fallback": ("trainer", 35, False, True),
    "unk_id": ("trainer", 40, 0, 0),
    "bos_id": ("trainer", 41, 1, 1),
    "eos_id": ("trainer", 42, 2, 2),
    "pad_id": ("trainer", 43, -1, -1),
    "unk_surface": ("trainer", 44, " \u2047 ", " \u2047 "),
    "normalization_rule_name": ("normalizer", 1, "", "identity"),
    "add_dummy_prefix": ("normalizer", 3, True, True),
    "remove_extra_whitespaces": ("normalizer", 4, True, False),
    "escape_whitespaces": ("normalizer", 5, True, True),
}
# Encoding and decoding depend on these alone; a model that differs is refused.
REQUIRED = ("model_type", "byte_fallback", "treat_whitespace_as_suffix", "unk_surface", "add_dummy_prefix",
            "remove_extra_whitespaces", "escape_whitespaces")
MESSAGES = {"trainer": 2, "normalizer": 3}         # their field numbers in the file


def read_model_file(path):
    """The bytes of a file. Raises InputError if it cannot be read, or is too large to be a tokenizer's."""
    return read_bytes(path, MAX_BYTES)


def write_model_file(path, data):
    """Write the bytes atomically: a reader sees the old file or the new one, never half of one. Raises InputError if that fails."""
    try:
        with atomic(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def parse_model(data, name="the model"):
    """Pieces and settings of a `.model`. Raises InputError for bytes that are not one."""
    try:
        return _parse_model(data)
    except (ValueError, TypeError, AttributeError, struct.error) as error:
        raise InputError(f"{name} is not a SentencePiece model: {error}") from None


def _parse_model(data):
    pieces, messages = [], {"trainer": {}, "normalizer": {}}
    rewrites_text = False
    for number, value in read_fields(data):
        if number == 1:
            fields = dict(read_fields(value))
            (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
            pieces.append((fields[1].decode() if 1 in fields else "", score, fields.get(3, NORMAL)))
        elif number == MESSAGES["trainer"]:
            messages["trainer"].update(read_fields(value))
        elif number == MESSAGES["normalizer"]:
            messages["normalizer"].update(read_fields(value))
            rewrites_text |= bool(messages["normalizer"].get(2))           # a compiled table of replacements
        elif number == 5:
            rewrites_text |= bool(dict(read_fields(value)).get(2))         # the same, for decoding
    if not pieces:
        raise ValueError("it has no pieces")
    settings = {"rewrites_text": rewrites_text}
    for key, (message, number, default, _) in SETTINGS.items():
        settings[key] = _from_wire(messages[message][number], default) if number in messages[message] else default
    return pieces, settings


def format_model(pieces, settings):
    """The bytes of a `.model` with these pieces and settings; the inverse of parse_model."""
    data = b"".join(_field(1, _field(1, piece) + _field(2, score) + _field(3, kind)) for piece, score, kind in pieces)
    for message, number in MESSAGES.items():
        fields = [_field(field, settings[key]) for key, (owner, field, _, _) in SETTINGS.items() if owner == message]
        size = _field(4, len(pieces)) if message == "trainer" else b""
        data += _field(number, b"".join(fields) + size)
    return data


def read_fields(data):
    """Yield (field number, value) of a protobuf message: int for a varint, bytes for everything else.

    Each field is a varint tag = 8 · number + type, then by type: 0 a varint, 1 eight bytes, 2 a length and that many bytes, 5 four bytes.
    """
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        if tag & 7 == 0:
            value, position = _read_varint(data, position)
        else:
            size = {1: 8, 5: 4}.get(tag & 7)
            if tag & 7 == 2:
                size, position = _read_varint(data, position)
            if size is None or position + size > len(data):
                raise ValueError(f"damaged at byte {position} of {len(data)}")
            value, position = data[position:position + size], position + size
        yield tag >> 3, value


def _read_varint(data, position):
    """Seven bits a byte, the lowest first; the eighth bit says that another byte follows."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte, position = data[position], position + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"damaged at byte {position} of {len(data)}")


def _varint(value):
    value %= 1 << 64                                        # a negative number is written as 64 bits
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number, value):
    if isinstance(value, float):
        return _varint(8 * number + 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return _varint(8 * number) + _varint(value)
    value = value.encode() if isinstance(value, str) else value
    return _varint(8 * number + 2) + _varint(len(value)) + value


def _from_wire(value, like):
    """A field's value in the type of its default."""
    if isinstance(like, float):
        return round(struct.unpack("<f", value)[0], 7)
    if isinstance(like, str):
        return value.decode()
    signed = value - (1 << 64) if value >= 1 << 63 else value
    return type(like)(signed)
