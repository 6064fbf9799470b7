"""The benchmark's bookkeeping: keys, ratios and rooflines. Never its times: machines are noisy."""
import json

import pytest

from minillama.__main__ import main
from minillama.config import ModelConfig
from minillama.nn import count_params
from minillama.report import bench
from minillama.report.plan import step_flops


def test_profile_covers_the_step(capsys, tmp_path):
    assert main(["bench", "--profile", "--shapes", "a", "--threads", "1", "--json", "--plot", str(tmp_path / "p.png")]) == 0
    rows = json.loads(capsys.readouterr().out)["profile"]["a"]
    keys = {"op", "calls", "forward_ms", "backward_ms", "share", "gflop", "rate", "of_sgemm"}
    assert all(row.keys() == keys for row in rows)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    model, batch, seq_len = bench.SHAPES["a"]
    expected = step_flops(ModelConfig(**model), batch, seq_len) / 1e9
    assert sum(row["gflop"] for row in rows) == pytest.approx(expected, rel=0.01)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_contenders_take_turns_and_report(monkeypatch):
    done = bench.compete(("numpy",), "a", 1, seconds=0.1)["numpy"]
    assert done.absent is None
    assert len(done.times) >= 7
    assert done.median == pytest.approx(sorted(done.times)[len(done.times) // 2], rel=0.5)
    assert done.mb > 5
    assert done.process.returncode == 0


def test_numpy_and_torch_train_the_same_model():
    """The peer is the same LLaMA: as many parameters, and the reference's loss on the same weights."""
    import torch

    from kernels import reference

    config = ModelConfig(**bench.SHAPES["a"][0])
    module = bench._torch_model(config)
    assert sum(p.numel() for p in module.parameters()) == count_params(config)
    params = {name.removesuffix(".weight"): p for name, p in module.named_parameters()}
    tokens = torch.randint(0, config.vocab_size, (2, 17))
    expected = reference.cross_entropy_forward(reference.model_forward(tokens[:, :-1], params, config), tokens[:, 1:])
    assert module(tokens[:, :-1], tokens[:, 1:]).item() == pytest.approx(expected.item(), abs=1e-5)


def fake(milliseconds, mb):
    def contender(name):
        done = bench.Contender.__new__(bench.Contender)
        done.name, done.times, done.mb, done.absent = name, [milliseconds[name] / 1e3] if milliseconds[name] else [], mb, None
        return done

    return contender


def test_result_schema(monkeypatch, capsys):
    times = {"numpy": 30.0, "torch": 40.0, "compile": None, "numpy decode": 500.0, "huggingface decode": None}
    monkeypatch.setattr(bench, "compete", lambda names, *a, **k: {name: fake(times, 100.0)(name) for name in names})
    monkeypatch.setattr(bench, "sgemm_rate", lambda threads: 1e11)
    monkeypatch.setattr(bench, "read_bandwidth", lambda threads: 2e10)
    assert main(["bench", "--shapes", "a,b", "--threads", "1,2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result.keys() == {"environment", "train", "decode"}
    assert [(row["shape"], row["threads"]) for row in result["train"]] == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    row = result["train"][0]
    assert row.keys() == {"shape", "threads", "numpy_ms", "torch_ms", "ratio", "compile_ms", "compile_ratio", "gemm_roofline_ms",
                          "sgemm_gflops", "numpy_mb", "torch_mb", "spread"}
    assert row["ratio"] == pytest.approx(0.75)
    assert row["compile_ratio"] is None
    assert row["gemm_roofline_ms"] == pytest.approx(1e3 * step_flops(ModelConfig(**bench.SHAPES["a"][0]), 12, 64) / 1e11)
    decode = result["decode"][0]
    assert decode.keys() == {"threads", "tokens_per_s", "roofline_tokens_per_s", "huggingface_tokens_per_s", "read_gb_per_s", "spread"}
    assert decode["tokens_per_s"] == pytest.approx(512)
    config = ModelConfig(**bench.DECODE)
    assert decode["roofline_tokens_per_s"] == pytest.approx(2e10 / 4 / (count_params(config) - 32000 * 288))
    text = bench.format_bench(result)
    assert "0.75" in text
    assert "absent" in text
    assert "disturbed" not in text
    decode["spread"] = 3.25
    assert "disturbed: single times of one contender differ 3.2 times" in bench.format_bench(result)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--shapes", "a,z"], "error: --shapes must name some of a, b, c, got 'z'\n"),
    (["--threads", "1,x"], "error: --threads must hold whole numbers from 1 to 1024, got 'x'\n"),
    (["--threads", "0"], "error: --threads must hold whole numbers from 1 to 1024, got '0'\n"),
])
def test_bad_arguments(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    assert capsys.readouterr().err == message
