"""Sources: which files --data names, how much each weighs, and where a bad byte or line is."""
import pytest

from minillama.errors import InputError
from minillama.text.sources import parse_data


@pytest.mark.parametrize("before", [b"", b"x" * 996, b"x" * 995 + "é".encode(), b"x" * 2500])
def test_offset_of_a_bad_byte(before, tmp_path, monkeypatch):
    from minillama.text import sources

    monkeypatch.setattr(sources, "CHUNK", 997)
    (tmp_path / "a.txt").write_bytes(before + b"\xc3(" + b"y" * 50)
    with pytest.raises(InputError, match=f"byte 0xc3 at offset {len(before)} "):
        [list(chunks) for _, chunks, _ in parse_data([str(tmp_path / "a.txt")])[0].documents(0.01)]


@pytest.mark.parametrize(("content", "message"), [
    (b'{"text": "good"}\n{"text": 7}\n', "line 2 must be a JSON object with a string under \"text\", got b'{\"text\": 7}"),
    (b'{"text": "good"}\n["text"]\n', "line 2"),
    (b'{"txt": "good"}\n', "line 1"),
    (b"{broken\n", "line 1"),
    (b'{"text": "\\ud800"}\n', "line 1"),
    (b'{"text": "good"}\n{"text": "\xff"}\n', "byte 0xff at offset 27"),
    (b'{"text": "one"}\n{"text": "one"}\n', "must have at least 2 different documents, .* got 1"),
    (b"\n\n", "must hold at least one text that is not empty"),
])
def test_bad_jsonl(content, message, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(parse_data([str(tmp_path / "a.jsonl")])[0].documents(0.1))


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "half", ""])
def test_bad_weight(weight, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InputError, match=f"must be .*greater than 0.*, got '?{weight}'?$"):
        parse_data([f"{tmp_path}/a.txt={weight}"])


def test_data_arguments(tmp_path):
    for name in ("a.txt", "b=2.txt", "c.jsonl"):
        (tmp_path / name).write_text("text")
    sources = parse_data([f"{tmp_path}/a.txt=0.35", f"{tmp_path}/b=2.txt", f"{tmp_path}/c.jsonl=0.65"])
    assert [(s.name, s.weight) for s in sources] == [("a", 0.35), ("b=2", 1.0), ("c", 0.65)]
    with pytest.raises(InputError, match=r"names .*a\.txt twice"):
        parse_data([f"{tmp_path}/a.txt", f"{tmp_path}/a.txt=2"])
    with pytest.raises(InputError, match=r"cannot read .*none\.txt: No such file"):
        parse_data([f"{tmp_path}/none.txt"])
    (tmp_path / "empty.txt").touch()
    with pytest.raises(InputError, match=r"empty.txt is empty \(0 bytes\)"):
        parse_data([f"{tmp_path}/empty.txt"])
