"""The README's first example runs as it stands and prints what stands below it; every file it names is there; every command parses."""
import contextlib
import io
import re
import shlex

import pytest
from helpers import ROOT

from minillama.__main__ import main

DOCUMENTS = ["README.md", "minillama/README.md", "minillama/interop/README.md", "kernels/README.md", ".github/CONTRIBUTING.md"]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_example_prints_what_it_says():
    code, printed = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", read("README.md"), re.DOTALL).groups()
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})

    def figures(text):                                           # the error itself is rounding, another on every machine
        return [(line.split()[0], *(f"{float(word):.6e}" for word in line.split()[2:4]), line.split()[-1]) for line in text.splitlines()]

    assert figures(out.getvalue()) == figures(printed)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#]+)\)", read(name)):
        assert "://" in target or ((ROOT / name).parent / target).exists(), target


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_that_are_named_are_there(name):
    for path in re.findall(r"(?:tests|minillama|kernels)/[\w/]+\.(?:py|md)", read(name)):
        assert path.endswith("/X.py") or (ROOT / path).exists(), path


def test_every_file_has_its_line():
    text = read("README.md")
    for path in (ROOT / "minillama").rglob("*.py"):
        if path.name != "__init__.py" and path.parent.name != "interop":
            assert path.name in text, path


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_parse(name, monkeypatch):
    """With the options they are shown with; nothing is run."""
    for line in re.findall(r"^(?:.*&& )?(?:python|torchrun .*) -m minillama (.*)$", read(name), re.MULTILINE):
        words = shlex.split(line, comments=True)
        with monkeypatch.context() as patch:
            patch.setattr(f"minillama.__main__._{words[0]}", lambda arguments: 0)
            assert main(words) == 0, line
