"""What an installation brings: requirements.txt is all of it, pyproject.toml the light core and the extras, and every package is there."""
import re
import tomllib
from pathlib import Path

from helpers import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def names(requirements):
    return {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower() for line in requirements if line and not line.startswith("#")} - {"minillama"}


def test_requirements_are_core_and_extras():
    project = PYPROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    whole = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert names(whole) == names(project["dependencies"]) | names(extras)
    assert not {"torch", "triton", "jupyter", "pytest"} & names(project["dependencies"])


def test_every_package_is_installed_and_none_claims_the_name_kernels():
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "minillama").rglob("*.py")}
    folders |= {Path("minillama") / path.parent.relative_to(ROOT) for path in (ROOT / "kernels").rglob("*.py")}
    wanted = {".".join(folder.parts) for folder in folders}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == wanted
    assert PYPROJECT["tool"]["setuptools"]["package-dir"]["minillama.kernels"] == "kernels"
