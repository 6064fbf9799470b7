"""Builds the lessons: one source each, lessons/src/NN_name.py (jupytext's percent format), one run, two notebooks.

    python lessons/build.py                every lesson
    python lessons/build.py 03 04          these
    python lessons/build.py --fast         run them with short experiments, claims asked where they hold, and write nothing
    python lessons/build.py --check        is what is committed what the sources build? Nothing is run

lessons/NN_name.ipynb              solved, executed, with its outputs
lessons/exercises/NN_name.ipynb    the same with stubs, and without outputs

The run is the test: a cell that raises, or a claim that does not hold, ends the build. What differs from run to run is taken out
of the outputs: counters, times, the kernel's name, ids, addresses, progress, and what a widget needs a live kernel for.
"""
import argparse
import ast
import base64
import io
import json
import os
import re
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).resolve().parent
RECORD = "application/vnd.minillama.record+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
EXERCISE = re.compile(r"^from lessons\.checks\.(\w+) import (\w+)  # exercise$", re.MULTILINE)
PLACEHOLDER = re.compile(r"\{\{(\w+)(?::([^{}]*))?\}\}")
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"}}
PNG_LIMIT, NOTEBOOK_LIMIT, SECONDS_LIMIT = 60_000, 400_000, 90


class BuildError(Exception):
    """A lesson that cannot be built."""


def sources():
    """number -> source file of every lesson that is written."""
    return {path.name[:2]: path for path in sorted((HERE / "src").glob("[0-9][0-9]_*.py"))}


# ---- from the source to cells ----
def function_source(module, name):
    """The text of a function in lessons/checks, without running anything."""
    text = (HERE / "checks" / f"{module}.py").read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return ast.get_source_segment(text, node), node
    raise BuildError(f"lessons/checks/{module}.py has no function {name}")


def stub(module, name):
    """Signature and docstring of a function, and nothing in it."""
    text, node = function_source(module, name)
    end = node.body[0].end_lineno - node.lineno + 1
    return "\n".join([*text.splitlines()[:end], "    raise NotImplementedError"])


def read_cells(path, solved):
    """The notebook of a source, exercises solved or as stubs; placeholders are still there."""
    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    cells = []
    for n, cell in enumerate(notebook.cells, 1):
        text = cell.source
        if cell.cell_type == "code":
            text = EXERCISE.sub(lambda m: function_source(m[1], m[2])[0] if solved else stub(m[1], m[2]), text)
            new = nbformat.v4.new_code_cell(text)
        else:
            new = nbformat.v4.new_markdown_cell(_links(text, solved))
        new.id = f"cell-{n:02}"
        new.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "lang"})
        cells.append(new)
    return nbformat.v4.new_notebook(cells=cells, metadata=nbformat.from_dict(METADATA))


def _links(text, solved):
    """Links as the notebook's own folder sees them; a lesson that is still to come is named, without a link."""

    def link(match):
        label, target = match.groups()
        if re.fullmatch(r"\d\d_\w+\.ipynb", target):
            return match[0] if target[:2] in sources() else f"{label} (still to come)"
        if not solved and not re.match(r"https?:|#", target):
            return f"[{label}](../{target})"
        return match[0]

    return LINK.sub(link, text)


def fill(notebook, numbers):
    """Put the recorded numbers into the text."""

    def number(match):
        name, form = match.groups()
        if name not in numbers:
            raise BuildError(f"the text quotes {name}, and no cell records it")
        return format(numbers[name], form or "")

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = PLACEHOLDER.sub(number, cell.source)
    notebook.metadata["minillama"] = nbformat.from_dict({"recorded": numbers})
    return notebook


# ---- the run ----
def execute(notebook, folder, fast):
    """Run every cell in a fresh kernel. Raises BuildError at the first that fails."""
    os.environ.update(LESSONS_FAST="1" if fast else "", PYTHONHASHSEED="0", OPENBLAS_NUM_THREADS="1", PYDEVD_DISABLE_FILE_VALIDATION="1")
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}},
                            record_timing=False, extra_arguments=["--log-level=ERROR"])  # of the kernel: its address is no news
    try:
        client.execute()
    except CellExecutionError as error:
        raise BuildError(re.sub(r"\x1b\[[\d;]*m", "", str(error))) from None


def normalise(notebook):
    """Take out what differs from run to run; returns what was recorded."""
    numbers, count = {}, 0
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        outputs = []
        for output in cell.outputs:
            data = output.get("data", {})
            if RECORD in data:
                numbers.update({k: v if isinstance(v, str) else float(f"{v:.6g}") for k, v in data[RECORD].items()})
                continue
            if (output.output_type == "stream" and output.name == "stderr") or WIDGET in data:
                continue
            if "execution_count" in output:
                output.execution_count = count
            if output.output_type == "stream":
                output.text = _clean(output.text)
                if outputs and outputs[-1].output_type == "stream":
                    outputs[-1].text += output.text
                    continue
            for kind, value in data.items():
                data[kind] = _clean_png(value) if kind == "image/png" else _clean(value) if isinstance(value, str) else value
            output.pop("metadata", None) if output.output_type == "stream" else output.update(metadata={})
            outputs.append(output)
        cell.outputs = outputs
        cell.metadata.pop("execution", None)
    notebook.metadata = nbformat.from_dict(METADATA)
    return numbers


def _clean(text):
    text = re.sub(r"0x[0-9a-fA-F]{6,}", "0x…", text)
    text = re.sub(r"<ipython-input-\S+?>|/tmp/ipykernel_\S+?\.py", "<cell>", text)
    return text.replace(str(HERE.parent), "…").replace(str(Path.home()), "~") if str(Path.home()) != "/" else text


def _clean_png(text):
    """A PNG in 256 colours, a third of the size, and without matplotlib's version in it."""
    from PIL import Image

    small = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


# ---- the two notebooks ----
def paths(source):
    return HERE / f"{source.stem}.ipynb", HERE / "exercises" / f"{source.stem}.ipynb"


def build(source, fast=False):
    """Run a lesson and its exercise notebook; write both, unless fast."""
    started = time.perf_counter()
    solved, exercise = read_cells(source, True), read_cells(source, False)
    execute(solved, HERE, fast)
    numbers = normalise(solved)
    fill(solved, numbers)
    seconds = time.perf_counter() - started
    trial = read_cells(source, False)
    execute(trial, HERE / "exercises", fast)                     # with stubs, every cell must run as well
    if fast:
        return seconds
    fill(exercise, numbers)
    for path, notebook in zip(paths(source), (solved, exercise)):
        write(path, notebook)
    _check_sizes(source, solved)
    return seconds


def write(path, notebook):
    nbformat.validate(notebook)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def _check_sizes(source, notebook):
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            size = len(output.get("data", {}).get("image/png", "")) * 3 // 4
            if size > PNG_LIMIT:
                raise BuildError(f"{source.stem} {cell.id}: a picture of {size:,} bytes; at most {PNG_LIMIT:,}")
    size = paths(source)[0].stat().st_size
    if size > NOTEBOOK_LIMIT:
        raise BuildError(f"{source.stem}: the notebook has {size:,} bytes; at most {NOTEBOOK_LIMIT:,}")


def differences(source):
    """Where what is committed is not what the source builds: list of sentences. Code and text are compared; nothing is run."""
    found = []
    for path, solved in zip(paths(source), (True, False)):
        name = path.relative_to(HERE.parent).as_posix()
        if not path.exists():
            found.append(f"{name} is missing: python lessons/build.py {source.name[:2]}")
            continue
        committed = nbformat.read(path, as_version=4)
        numbers = dict(committed.metadata.get("minillama", {}).get("recorded", {}))
        try:
            expected = fill(read_cells(source, solved), numbers)
        except BuildError as error:
            found.append(f"{name}: {error}")
            continue
        pairs = [[(cell.cell_type, cell.source, cell.id) for cell in book.cells] for book in (committed, expected)]
        if pairs[0] != pairs[1]:
            at = next((k for k, (a, b) in enumerate(zip(*pairs), 1) if a != b), min(map(len, pairs)) + 1)
            found.append(f"{name} is not what its source builds, from cell {at} on: python lessons/build.py {source.name[:2]}")
        ran = [cell for cell in committed.cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)]
        if solved != bool(ran):
            found.append(f"{name} must {'hold its outputs' if solved else 'be without outputs'}")
    return found


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lessons", nargs="*", metavar="NN", help="numbers of lessons; none: all")
    parser.add_argument("--fast", action="store_true", help="short experiments; writes nothing")
    parser.add_argument("--check", action="store_true", help="compare only; runs nothing")
    options = parser.parse_args(arguments)
    every = sources()
    unknown = [n for n in options.lessons if n not in every]
    if unknown:
        parser.error(f"no lesson {', '.join(unknown)}; there are {', '.join(every)}")
    chosen = [every[n] for n in options.lessons or every]
    if options.check:
        found = [sentence for source in chosen for sentence in differences(source)]
        print("\n".join(found) or f"{len(chosen)} lessons are what their sources build")
        return 1 if found else 0
    for source in chosen:
        try:
            seconds = build(source, options.fast)
        except BuildError as error:
            print(f"{source.stem}: {error}", file=sys.stderr)
            return 1
        print(f"{source.stem}: {seconds:.0f} s{' (longer than a lesson may take)' if seconds > SECONDS_LIMIT else ''}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
