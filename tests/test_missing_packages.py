"""A machine with a GPU often has PyTorch's image and little else: what a plain training and the kernels' tests do not need may be missing
there, and what a command cannot do without is said in one sentence."""
import json
import subprocess
import sys

import pytest
from helpers import ROOT, SMALL

from minillama.__main__ import main

UNNEEDED = ("gguf", "matplotlib", "ml_dtypes")  # by a training, which draws no picture then


def python(code, *missing):
    """A fresh interpreter in which these packages are not installed."""
    block = f"""import sys
class Missing:
    def find_spec(name, path=None, target=None):
        if name in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing)
"""
    return subprocess.run([sys.executable, "-c", block + code], cwd=ROOT, capture_output=True, text=True, timeout=300)


def minillama(*arguments, missing):
    return python(f"from minillama.__main__ import main; sys.exit(main({list(map(str, arguments))!r}))", *missing)


def train(out, *arguments, missing):
    return minillama("train", "--engine", "numpy", "--out", out, *SMALL, *arguments, missing=missing)


def test_a_training_needs_few_packages(text, tmp_path):
    out = tmp_path / "run"
    done = train(out, "--data", text, missing=UNNEEDED)
    assert (done.returncode, done.stderr) == (0, "")
    sentence = "no loss.png: this needs the package matplotlib, which is not installed here: pip install matplotlib"
    assert done.stdout.count(sentence) == done.stdout.count("loss.png") == 1
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 12 and not (out / "loss.png").exists()
    assert json.loads((out / "checkpoints" / "step-000012" / "train_state" / "state.json").read_text()) == {"step": 12}


@pytest.mark.parametrize("package", ["tomli_w", "sentencepiece"])
def test_what_a_training_cannot_do_without_is_one_sentence(package, text, tmp_path):
    failed = train(tmp_path / "run", "--data", text, missing=[package])
    sentence = f"error: this needs the package {package}, which is not installed here: pip install {package}\n"
    assert (failed.returncode, failed.stdout, failed.stderr) == (2, "", sentence)
    assert not (tmp_path / "run").exists()


def test_a_format_whose_package_is_missing_is_one_sentence(finished, tmp_path):
    failed = minillama("export", finished, "--to", "gguf", "-o", tmp_path / "model.gguf", missing=["gguf"])
    assert (failed.returncode, failed.stderr) == (2, "error: this needs the package gguf, which is not installed here: pip install gguf\n")
    failed = minillama("export", finished, "--to", "hf", "--dtype", "bf16", "-o", tmp_path / "hf", missing=["ml_dtypes"])
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1) and "the package ml_dtypes" in failed.stderr
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_is_found_when_it_is_needed(finished, tmp_path):
    """By the first read in a fresh process, from the formats that have it."""
    for to in ("hf", "gguf"):
        assert main(["export", str(finished), "--to", to, "--dtype", "bf16", "-o", str(tmp_path / to)]) == 0
        read = f"read({str(tmp_path / to)!r}).tensors['output'].dtype"
        done = python(f"from minillama.interop import read; print({read}, 'ml_dtypes' in sys.modules)")
        assert (done.stdout, done.stderr) == ("float32 True\n", "")


def test_a_module_of_our_own_that_is_missing_is_a_bug(tmp_path):
    failed = minillama("runs", tmp_path, missing=["minillama.report.runs"])
    assert failed.returncode == 1 and "Traceback" in failed.stderr


def test_the_kernels_tests_are_collected_without_them():
    code = "import pytest; sys.exit(pytest.main(['tests/kernels', '-m', 'gpu', '--collect-only', '-q', '-p', 'no:cacheprovider']))"
    collected = python(code, *UNNEEDED, "tomli_w", "nbclient", "jupytext", "transformers")
    assert collected.returncode == 0, collected.stdout[-2000:] + collected.stderr[-2000:]
    assert "test_gpu.py::test_twin_run[float32-" in collected.stdout and "error" not in collected.stdout
