"""What `info` foretells: the paper's figures, and the memory that a run then uses."""
import json
import subprocess
import sys

import pytest

from minillama.config import EngineConfig, ModelConfig, TrainConfig, preset
from minillama.errors import InputError
from minillama.report.plan import check_memory, flops_per_token, plan, train_memory
from minillama.run.config import settle

PEAK = """
import sys
from minillama.__main__ import main
from minillama.machine import peak_memory
assert main(["train", "--data", *sys.argv[1:]]) == 0
print(peak_memory())
"""


@pytest.mark.parametrize(("name", "mfu"), [("7B", 0.43), ("13B", 0.51), ("33B", 0.46), ("65B", 0.48)])
def test_the_papers_gpu_hours(name, mfu):
    """With 6 N D, as is usual, table 15 implies these utilisations; ours counts attention too and the embedding not."""
    config, recipe = ModelConfig(**preset(name).model), TrainConfig(**preset(name).train)
    figures = plan(config, recipe, name)
    by_6nd = 6 * figures["parameters"] * figures["train_tokens"] / (312e12 * 3600 * figures["gpu_hours_paper"])
    assert by_6nd == pytest.approx(mfu, abs=0.01)
    assert figures["mfu_paper"] == pytest.approx(mfu, abs=0.03)


def test_flops_by_hand():
    """dim 4, one layer, hidden 10, vocabulary 10: q k v o, then gate, down, up, then the head, and three norms' gains."""
    config = ModelConfig(dim=4, n_layers=1, n_heads=1, vocab_size=10, multiple_of=2)
    assert config.hidden_dim == 10
    entries = 4 * 16 + 3 * 40 + 40 + 3 * 4
    assert flops_per_token(config, 7) == 3 * (2 * entries + 2 * 7 * 4)


@pytest.mark.parametrize("batch_size", [8, 64])
def test_memory_within_a_fifth_of_what_a_run_uses(batch_size, tmp_path):
    (tmp_path / "a.txt").write_text("Ann has a red kite and Tom has 12 blue drums, so they play by the river. " * 400)
    arguments = ["--vocab-size", "290", "--steps", "3", "--batch-size", str(batch_size), "--threads", "2", "--out", str(tmp_path / "r")]
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path / "a.txt"), *arguments], capture_output=True, text=True, check=True)
    used = int(done.stdout.splitlines()[-1])
    config = ModelConfig(**preset("nano").model | {"vocab_size": 290})
    assert train_memory(config, batch_size, 128)["total"] == pytest.approx(used, rel=0.2)


def test_time_on_this_machine():
    """At 100 GFLOP/s: the FLOPs of the training, and 40 % for what is not a matrix product; unknown of a model from elsewhere."""
    config, recipe = ModelConfig(**preset("nano").model), TrainConfig(**preset("nano").train)
    flops = flops_per_token(config, 128) * 2400 * 8 * 128
    assert plan(config, recipe, "nano", rate=1e11)["hours_here"] == pytest.approx(1.4 * flops / 1e11 / 3600)
    assert plan(config, recipe, "nano")["hours_here"] is None
    assert plan(config, recipe, trained_here=False, rate=1e11)["hours_here"] is None


def test_figures_are_json():
    json.dumps(plan(ModelConfig(**preset("nano").model), TrainConfig(**preset("nano").train), "nano"), allow_nan=False)


@pytest.mark.parametrize("parallel, device, cuda, refused", [
    (None, None, True, True), ("fsdp", "cpu", True, True), ("fsdp", None, False, True), ("fsdp", None, True, False),
])
def test_a_model_larger_than_this_machine(parallel, device, cuda, refused, monkeypatch):
    """65B has 261 GB of parameters. Several processes with GPUs draw or read them tensor by tensor; all others hold them here."""
    monkeypatch.setattr("minillama.report.plan.total_memory", lambda: 200_000_000_000)
    monkeypatch.setattr("minillama.report.plan.has_cuda", lambda: cuda)
    config, engine = settle({"preset": "65B"}), EngineConfig("torch", device, parallel=parallel)
    if not refused:
        return check_memory(config, engine)
    with pytest.raises(InputError, match=r"the model needs about 261 GB of memory .*, and this machine has 200 GB"):
        check_memory(config, engine)
