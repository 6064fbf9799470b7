"""What is written in the lessons exists: equations, links, recorded numbers, names; and what is committed is what the sources build."""
import re

import nbformat
import pytest
from helpers import ROOT

from lessons import build
from lessons.check import find, names

SOURCES = build.sources()
each_lesson = pytest.mark.parametrize("number", SOURCES)


def markdown(number):
    return "\n".join(cell.source for cell in build.read_cells(SOURCES[number], True).cells if cell.cell_type == "markdown")


def tagged(number):
    return set(re.findall(r"\\tag\{(\d+\.\d+)\}", markdown(number)))


@each_lesson
def test_committed_is_what_the_source_builds(number):
    assert build.differences(SOURCES[number]) == []


@each_lesson
def test_equations_exist(number):
    """Those that the text quotes, and those that the messages of the checks quote."""
    text = markdown(number)
    quoted = set(re.findall(r"\((\d+\.\d+)\)", text))
    for name in names(number):
        for mistake in find(name).mistakes:
            quoted |= set(re.findall(r"\((\d+\.\d+)\)", mistake.says))
    assert {q for q in quoted if q.startswith(f"{int(number)}.")} <= tagged(number)
    assert all(q.split(".")[0].zfill(2) in SOURCES and q in tagged(q.split(".")[0].zfill(2)) for q in quoted)


@each_lesson
def test_every_exercise_is_in_its_lesson(number):
    text = SOURCES[number].read_text(encoding="utf-8")
    assert {f"{number}.{name}" for _, name in build.EXERCISE.findall(text)} == set(names(number))
    assert set(re.findall(r'^check\("(\d\d\.\w+)"', text, re.MULTILINE)) == set(names(number))
    assert 2 <= len(names(number)) <= 4


@each_lesson
def test_a_lesson_is_whole(number):
    """Question, question marks at the end, what does not show, the paper, the way on; pictures and claims; no cell too long."""
    text = markdown(number)
    for part in ("**Question.**", "does not show at this scale", "The anchor in the paper", "## Three questions",
                 "<details><summary>Answers</summary>", "**The way on:**"):
        assert part in text, part
    solved = nbformat.read(build.paths(SOURCES[number])[0], as_version=4)
    pictures = [o for cell in solved.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert pictures
    assert all(len(o.data["image/png"]) * 3 // 4 <= build.PNG_LIMIT for o in pictures)
    printed = "".join(o.get("text", "") for cell in solved.cells for o in cell.get("outputs", []))
    assert "✗" not in printed, "the solved notebook shows a check that fails"
    assert sum("claim(" in cell.source for cell in solved.cells if cell.cell_type == "code")
    assert not re.search(r"/tmp/|/home/|/root/|/work/|[A-Z]:\\\\", build.paths(SOURCES[number])[0].read_text(encoding="utf-8"))


def test_links_resolve():
    files = [ROOT / "lessons" / "README.md", ROOT / "lessons" / "AGENTS.md"]
    texts = [(file, file.read_text(encoding="utf-8")) for file in files]
    for source in SOURCES.values():
        for path in build.paths(source):
            texts.append((path, "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")))
    broken = [(path.name, target) for path, text in texts for _, target in build.LINK.findall(text)
              if not re.match(r"https?:|#", target) and not (path.parent / target.split("#")[0]).exists()]
    assert broken == []


def test_docstrings_name_lessons_of_the_map():
    """A pointer resolves, or its lesson is one that the map names as still to come."""
    readme = (ROOT / "lessons" / "README.md").read_text(encoding="utf-8")
    planned = set(re.findall(r"`(\d\d_\w+)`", readme))
    pointed = {}
    for folder in ("minillama", "kernels"):
        for file in (ROOT / folder).rglob("*.py"):
            for name in re.findall(r"lessons/(\d\d_\w+)\.ipynb", file.read_text(encoding="utf-8")):
                pointed.setdefault(name, []).append(file.relative_to(ROOT).as_posix())
    existing = {path.stem for path in SOURCES.values()}
    assert all((ROOT / "lessons" / f"{name}.ipynb").exists() for name in existing)
    to_come = set(pointed) - existing
    assert to_come <= planned, {name: pointed[name] for name in to_come - planned}
    assert not planned & existing, "the map names a lesson as still to come that is there"
    assert existing == set(re.findall(r"\]\((\d\d_\w+)\.ipynb\)", readme))


def test_mistakes_have_no_path_and_end_a_sentence():
    for number in SOURCES:
        for name in names(number):
            for mistake in find(name).mistakes:
                assert not mistake.says.endswith("."), mistake
                assert mistake.says[0].islower() or not mistake.says[0].isalpha() or mistake.says.split()[0] not in ("The", "A"), mistake
