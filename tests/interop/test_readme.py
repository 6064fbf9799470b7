"""The document of minillama/interop: its Python snippets and its commands run as they stand, and write what it says."""
import ast
import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from interop_models import small, tokenizer

from minillama import interop
from minillama.__main__ import main
from minillama.engine.numpy_engine import NumpyEngine
from minillama.generate import Sampling, generate
from minillama.interop.meta import meta_name
from minillama.run.folder import import_model
from minillama.text.model_file import FIRST_ID

pytestmark = pytest.mark.filterwarnings("ignore")
DOCUMENT = Path(interop.__file__).with_name("README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [line for language, code in BLOCKS if not language for line in code.splitlines()]


def modules(code):
    """The modules that a snippet imports."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module)
    return found


def talker():
    """small(), with room for the commands. It never chooses a byte or a control token, so that its text has only characters and goes on."""
    model = small(10000.0)
    output = model.tensors["output"].copy()
    output[:FIRST_ID] = 0
    config = dataclasses.replace(model.config, max_seq_len=256, multiple_of=128)
    return dataclasses.replace(model, config=config, tensors=model.tensors | {"output": output})


def written():
    """What our own greedy generation writes after Tom, 40 tokens."""
    model, start = talker(), tokenizer().encode("Tom", bos=True)
    engine = NumpyEngine(model.config, params=model.tensors, threads=1)
    return tokenizer().decode(start + list(generate(engine, start, 40, tokenizer().eos_id, Sampling(temperature=0))))


EXPECTED = {  # what a snippet prints, by the client it imports
    "transformers": written,
    "llama_cpp": written,
    "torch": lambda: str({meta_name(name): tensor.shape for name, tensor in talker().tensors.items()}),
    "minillama": lambda: f"{talker().config} (48, 48)",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the run that the document exports, and the model and the text that it imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    interop.write("models/llama-hf", talker(), "hf")
    import_model(Path("models/llama-hf"), Path("runs/nano"))
    Path("book.txt").write_text("Tom has 12 red kites . " * 200)
    return tmp_path


def run(line, *more):
    """A command of the document, without its comment: its exit status."""
    words = [str(Path(word).expanduser()) if word.startswith("~") else word for word in shlex.split(line, comments=True)]
    assert words[:3] == ["python", "-m", "minillama"]
    return main([*words[3:], *more])


def ours(verb):
    return [line for line in COMMANDS if line.startswith(f"python -m minillama {verb} ")]


def test_every_snippet_has_an_expected_output():
    assert [modules(code) for code in PYTHON] == [[client] for client in EXPECTED]


@pytest.mark.parametrize("client, code", list(zip(EXPECTED, PYTHON)), ids=EXPECTED)
def test_a_snippet_writes_what_ours_writes(client, code, folder, capsys):
    pytest.importorskip(client, reason=f"{client.replace('llama_cpp', 'llama-cpp-python')} is not installed")
    for line in ours("export"):
        assert run(line) == 0
    capsys.readouterr()
    names = {}
    exec(compile(code, f"README.md, {client}", "exec"), names)
    assert capsys.readouterr().out == EXPECTED[client]() + "\n"
    if client == "llama_cpp":
        names["llama"].close()
    if client == "minillama":
        wq = talker().tensors["layers.0.wq"].astype(np.float16).astype(np.float32)
        assert np.array_equal(interop.read("nano-half").tensors["layers.0.wq"], wq)


MORE = {"export": [], "import": [], "generate": ["-n", "3"], "eval": [], "train": ["--steps", "2", "--threads", "1"]}


def test_the_commands_run_one_after_the_other(folder, capsys):
    """Every command of ours is run; the others are those of other programs."""
    assert len(ours("export")) == len(interop.FORMATS)
    for verb, more in MORE.items():
        assert ours(verb), verb
        for line in ours(verb):
            assert run(line, *more) == 0, line
    for path in ("nano-hf", "nano.gguf", "nano-c", "nano-meta", "runs/llama", "runs/tuned"):
        assert Path(path).exists(), path
    others = set(COMMANDS) - {line for verb in MORE for line in ours(verb)}
    assert {line.split()[0] for line in others if ".py  " not in line} == {"lm_eval", "gguf-dump", "run"}


def test_gguf_dump_shows_the_model(folder):
    assert run(next(line for line in ours("export") if "gguf" in line)) == 0
    (line,) = [line for line in COMMANDS if line.startswith("gguf-dump ")]
    program = [sys.executable, "-m", "gguf.scripts.gguf_dump"]   # what gguf-dump calls; its folder may not be in PATH
    done = subprocess.run([*program, *shlex.split(line, comments=True)[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "blk.2.attn_q.weight" in done.stdout


def test_the_command_that_the_texts_are_compared_with(folder, capsys):
    command = re.search(r"`(python -m minillama generate runs/nano [^`]*)`", DOCUMENT)[1]
    assert run(command) == 0
    assert capsys.readouterr().out == written() + "\n"


def test_every_file_of_the_folder_has_its_line():
    assert {path.name for path in Path(interop.__file__).parent.glob("*.py")} <= set(re.findall(r"^(\w+\.py) ", DOCUMENT, re.MULTILINE))
