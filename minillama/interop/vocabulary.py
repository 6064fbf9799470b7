"""One vocabulary in four files: SentencePiece's `.model`, tokenizer.json, llama2.c's tokenizer.bin, GGUF's lists.

SentencePiece joins the neighbours whose joined piece has the highest score; `transformers` joins by a list of merges, in its order.
The list is every way to cut a piece into two pieces, ordered by the score of the joined piece:

    merges = [(l, r) for all pieces l, r with l + r a piece], by -score(l + r), then by the ids of l + r, l, r

So both give the same ids. Backwards, the score of a piece is minus its place in that order.
The `.model` file: minillama/text/model_file.py.
"""
import json
import struct
from functools import lru_cache

from ..errors import InputError
from ..text.bpe import BPE
from ..text.model_file import BYTE, BYTE_PIECES, CONTROL, MAX_VOCAB_SIZE, NORMAL, SPACE, UNKNOWN

MAX_PIECE = 256  # characters: every way to cut a piece is tried, which takes quadratic time
NORMALIZER = {
    "type": "Sequence",
    "normalizers": [{"type": "Prepend", "prepend": SPACE}, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}],
}


def read_pieces(data, name):
    """Pieces of a `.model`, list of (piece, score, kind). Raises InputError unless it is LLaMA-style."""
    try:
        pieces = BPE.from_bytes(data, name).pieces
    except InputError as error:
        text = str(error)
        raise InputError(text if str(name) in text else f"{name}: {text}") from None
    return _short(pieces, name)


def _short(pieces, where):
    for id, (piece, _, _) in enumerate(pieces):
        if len(piece) > MAX_PIECE:
            raise InputError(f"{where}: piece {id} must have at most {MAX_PIECE} characters, got {len(piece)}")
    return pieces


def special_ids(pieces):
    """{"unk", "bos", "eos"} -> id."""
    ids = {piece: id for id, (piece, _, kind) in enumerate(pieces) if kind in (UNKNOWN, CONTROL)}
    unknown = next(id for id, (_, _, kind) in enumerate(pieces) if kind == UNKNOWN)
    return {"unk": unknown, "bos": ids["<s>"], "eos": ids["</s>"]}


def checked(data, vocab_size, where):
    """The `.model`, unchanged. Raises InputError unless it is LLaMA-style and of the model's size."""
    pieces = read_pieces(data, where)
    if len(pieces) != vocab_size:
        raise InputError(f"{where} must have {vocab_size} pieces, the model's vocabulary, got {len(pieces)}")
    return data


def from_pieces(pieces, where):
    """The bytes of a `.model` with these pieces, list of (piece, score, kind). Raises InputError unless they are LLaMA-style."""
    try:
        vocabulary = BPE(pieces)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    _short(pieces, where)
    return vocabulary.to_bytes()


# --------------------------------------------------------------------------------------------------------------- tokenizer.json

def merges(pieces):
    """Every (l, r) of normal pieces with l + r a normal piece, in the order in which they are tried."""
    ids = {piece: id for id, (piece, _, kind) in enumerate(pieces) if kind == NORMAL}
    found = [(piece[:cut], piece[cut:]) for piece in ids for cut in range(1, len(piece)) if piece[:cut] in ids and piece[cut:] in ids]

    def order(pair):
        joined = ids[pair[0] + pair[1]]
        return -pieces[joined][1], joined, ids[pair[0]], ids[pair[1]]

    return sorted(found, key=order)


@lru_cache(maxsize=1)  # a run writes the same text with every checkpoint
def to_tokenizer_json(data):
    """The text of tokenizer.json for the bytes of a `.model`."""
    pieces = read_pieces(data, "the tokenizer")
    ids = special_ids(pieces)
    names = {name: pieces[id][0] for name, id in ids.items()}
    start = {"SpecialToken": {"id": names["bos"], "type_id": 0}}

    def sequence(letter, type_id):
        return {"Sequence": {"id": letter, "type_id": type_id}}

    return json.dumps({
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id, "content": names[name], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            for name, id in sorted(ids.items(), key=lambda item: item[1])
        ],
        "normalizer": NORMALIZER,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, sequence("A", 0)],
            "pair": [start, sequence("A", 0), {"SpecialToken": {"id": names["bos"], "type_id": 1}}, sequence("B", 1)],
            "special_tokens": {names["bos"]: {"id": names["bos"], "ids": [ids["bos"]], "tokens": [names["bos"]]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": names["unk"],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: id for id, (piece, _, _) in enumerate(pieces)},
            "merges": merges(pieces),
        },
    }, ensure_ascii=False)


def tokenizer_config(max_seq_len):
    """tokenizer_config.json, as both versions of `transformers` read it.

    It names the generic class, because LlamaTokenizer would rebuild the merges in the wrong order. It also names what the tokenizer
    returns: the generic class of version 4 adds token_type_ids otherwise, and `model.generate` refuses them.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_seq_len,
    }


def from_tokenizer_json(data, where):
    """The bytes of a `.model` for the bytes of a tokenizer.json.

    Version 5 of `transformers` saves its LlamaTokenizer without tokenizer.model, and with steps that give other ids for some texts.

    Raises:
        InputError: SentencePiece would not give the same ids, or the file is broken; the message says what to do
    """
    try:
        return _rebuilt(data, where)
    except InputError as error:
        raise InputError(f"{error}; put the original tokenizer.model beside it: then that is read instead") from None


def _rebuilt(data, where):
    """from_tokenizer_json, without the advice in its messages."""
    try:
        text = json.loads(data)
        _check_steps(text, where)
        model = text["model"]
        vocab = sorted(model["vocab"].items(), key=lambda item: item[1])
        if [id for _, id in vocab] != list(range(len(vocab))) or len(vocab) > MAX_VOCAB_SIZE:
            raise InputError(f"{where}: the ids of its {len(vocab)} pieces must be 0, 1, 2 ... up to at most {MAX_VOCAB_SIZE - 1}")
        pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
        order = dict.fromkeys(left + right for left, right in pairs)  # every piece that is merged, the first one first
        controls = {token["content"] for token in text["added_tokens"] if token["special"]} - {model["unk_token"]}
        unknown = model["unk_token"]
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{where} is not a tokenizer.json: {error!r:.120}") from None
    scores = {piece: -float(place) for place, piece in enumerate(order)}
    kinds = {unknown: UNKNOWN, **dict.fromkeys(controls, CONTROL), **dict.fromkeys(BYTE_PIECES, BYTE)}
    pieces = [
        (piece, scores.get(piece, 0.0 if piece in kinds else -float(len(order) + id)), kinds.get(piece, NORMAL)) for piece, id in vocab
    ]
    rebuilt = from_pieces(pieces, where)
    if set(merges(pieces)) != set(pairs):
        raise InputError(f"{where} is not LLaMA-1's tokenizer: its merges must be all the ways to cut its pieces in two")
    return rebuilt


def _check_steps(text, where):
    """Raises InputError unless a tokenizer.json, as dict, goes from text to ids in SentencePiece's steps."""
    model = text["model"]
    for key, value, allowed, must_be in (
        ("model.type", model["type"], "BPE", '"BPE"'),
        ("model.byte_fallback", model.get("byte_fallback"), True, "true"),
        ("model.ignore_merges", model.get("ignore_merges", False), False, "false"),
        ("model.dropout", model.get("dropout"), None, "null"),
        ("normalizer", text.get("normalizer"), NORMALIZER, f'"{SPACE}" before the text and for every space'),
        ("pre_tokenizer", text.get("pre_tokenizer"), None, "null"),
    ):
        if value != allowed:
            raise InputError(f"{where} is not LLaMA-1's tokenizer: {key} must be {must_be}, got {json.dumps(value)[:120]}")

# ---------------------------------------------------------------------------------------------------------------- tokenizer.bin

def to_tokenizer_bin(data):
    """llama2.c's tokenizer.bin for the bytes of a `.model`: the longest piece's length, then score, length and text of each.

    Raises:
        InputError: <unk>, <s>, </s> and the bytes do not have LLaMA's ids, which run.c requires
    """
    pieces = read_pieces(data, "the tokenizer")
    if [piece for piece, _, _ in pieces[:259]] != ["<unk>", "<s>", "</s>", *BYTE_PIECES]:
        raise InputError("for llama2.c <unk>, <s>, </s> and the 256 bytes must have the ids 0 to 258, and in this tokenizer they do not")
    texts = [f"\n{piece}\n" if kind == CONTROL else piece.replace(SPACE, " ") for piece, _, kind in pieces]
    out = [struct.pack("<I", max(len(text.encode()) for text in texts))]
    for text, (_, score, _) in zip(texts, pieces):
        out.append(struct.pack("<fI", score, len(text.encode())) + text.encode())
    return b"".join(out)


def from_tokenizer_bin(data, vocab_size, where):
    """The bytes of a `.model` for the bytes of a tokenizer.bin. Raises InputError if it is broken."""
    pieces, position = [], 4
    try:
        (longest,) = struct.unpack_from("<I", data)
        while position < len(data) and len(pieces) < vocab_size:
            score, size = struct.unpack_from("<fI", data, position)
            text = data[position + 8:position + 8 + size]
            if size > longest:
                raise ValueError(f"piece {len(pieces)} must have at most {longest} bytes, got {size}")
            if len(text) < size:
                raise ValueError(f"piece {len(pieces)} must have {size} bytes, got {len(text)}")
            pieces.append((text.decode(), score))
            position += 8 + size
    except (struct.error, ValueError) as error:
        raise InputError(f"{where} is not a tokenizer.bin of llama2.c: {error}") from None
    if position < len(data) or len(pieces) < vocab_size:
        got = "more" if position < len(data) else len(pieces)
        raise InputError(f"{where} must have exactly {vocab_size} pieces, the model's vocabulary, got {got}")
    kinds = {"<unk>": UNKNOWN, "\n<s>\n": CONTROL, "\n</s>\n": CONTROL, **dict.fromkeys(BYTE_PIECES, BYTE)}

    def piece(text, score):
        kind = kinds.get(text, NORMAL)
        return text.strip("\n") if kind == CONTROL else text.replace(" ", SPACE), score, kind

    return from_pieces([piece(*entry) for entry in pieces], where)
