"""What `info --gpus` foretells, held to cases that were computed by hand."""
import json
import re

import pytest
from helpers import call

from minillama.config import GPUS, PRESETS, ModelConfig, TrainConfig
from minillama.report import scale as module
from minillama.report.scale import DATA_SHEETS, format_scale, kept_per_token, memory, scale

GB = 1e9


def planned(name, gpus, **options):
    preset = PRESETS[name]
    options |= {"preset_name": name, "train_tokens": preset.train_tokens}
    return scale(ModelConfig(**preset.model), TrainConfig(**preset.train), gpus, **options)


def test_memory_of_65B_on_2048():
    """65,285,660,672 parameters; 809,517,056 of them in a layer, 524,296,192 in the root, 262,144,000 in the head. A token keeps 186,624
    bytes in a layer. The worst stage is backward of the second layer from the top, with the top one's gradients still being summed."""
    parts = planned("65B", 2048)["memory_bytes"]["triton"]
    assert parts == {
        "parameters": 127_511_056,
        "moments": 255_022_112,
        "gradients": 1_581_088,
        "gathered": 4_286_660_608,
        "unreduced": 5_381_390_336,
        "activations": 30_194_270_208,
        "work": 1_098_907_648,
        "context": 2_000_000_000,
        "total": 43_345_343_056,
    }


def test_memory_of_7B_on_8():
    """6,738,415,616 parameters; 202,383,360 in a layer, 262,148,096 in the root, 131,072,000 in the head. 256 micro-batches: the sum of the
    gradients lies there from the second on. 93,312 bytes of a token in a layer."""
    parts = planned("7B", 8)["memory_bytes"]["triton"]
    assert parts == {
        "parameters": 3_369_207_808,
        "moments": 6_738_415_616,
        "gradients": 3_369_207_808,
        "gathered": 1_333_829_632,
        "unreduced": 1_476_444_160,
        "activations": 5_924_192_256,
        "work": 448_790_528,
        "context": 2_000_000_000,
        "total": 24_660_087_808,
    }


def test_memory_of_micro_on_2():
    """8,335,008 parameters; 995,904 in a layer, 2,359,584 in the root. 1,024 tokens: on a GPU the worst stage is the top layer's backward,
    in float32 on a processor it is the loss, with three arrays of 1,024 x 4,096."""
    needed = planned("micro", 2)["memory_bytes"]
    assert needed["triton"] == {
        "parameters": 16_670_016, "moments": 33_340_032, "gradients": 0, "gathered": 8_702_784, "unreduced": 4_351_104,
        "activations": 40_255_488, "work": 12_687_360, "context": 2_000_000_000, "total": 2_116_006_784,
    }
    assert needed["processor"] == {
        "parameters": 16_670_016, "moments": 33_340_032, "gradients": 0, "gathered": 13_421_952, "unreduced": 0,
        "activations": 150_016_000, "work": 50_331_648, "context": 390_000_000, "total": 653_779_648,
    }


def test_memory_where_the_root_is_largest():
    """Vocabulary 32,000 and dim 512: the end of backward is the worst stage. 39,094,784 parameters, 32,768,512 of them in the root, in two
    processes with float32: the root's gradients on their way, gloo's copy of them, and the head's."""
    config = ModelConfig(dim=512, n_layers=2, n_heads=8, vocab_size=32000, multiple_of=32, max_seq_len=256)
    parts = memory(config, 1, 64, 2, engine="torch", device="cpu")
    assert {name: size for name, size in parts.items() if size} == {
        "parameters": 78_189_568, "moments": 156_379_136, "gradients": 78_189_568, "unreduced": 327_684_096,
        "context": 390_000_000, "total": 1_030_442_368,
    }
    again = memory(config, 1, 64, 2, engine="torch", device="cpu", accumulates=True)
    assert again["total"] - parts["total"] == 65_537_024         # this micro-batch's share, before it is added
    on_gpu = memory(config, 1, 64, 2, engine="torch")            # no copies, and the head's gradient in bfloat16
    assert on_gpu["unreduced"] == 4 * 32_768_512 + 2 * 16_384_000
    on_gpu = memory(config, 1, 64, 8, engine="torch")            # a share is small: all of the root's gradients, in both dtypes, are more
    assert on_gpu["unreduced"] == 6 * 32_768_512
    uneven = memory(config, 1, 64, 3, engine="torch", device="cpu")  # 32,000 rows are filled up for 3
    assert uneven["unreduced"] == 12 * 32_768_512
    assert uneven["gradients"] == pytest.approx(4 / 3 * 6_326_272)  # those of the layers


def test_memory_where_the_loss_is_largest():
    """dim 64, hidden 192, one layer of 53,376 parameters, 32,000 pieces; 4,149,440 parameters. The logits of 1,024 tokens are one chunk; of
    32,768 tokens they would be 2 GB, and a chunk has 512 MiB. Beside it the head's gradient in float32."""
    config = ModelConfig(dim=64, n_layers=1, n_heads=2, vocab_size=32000, multiple_of=32)
    few, many = (memory(config, rows, 1024, 2, accumulates=True) for rows in (1, 32))
    assert few["work"] == 65_536_000 + 8_192_000
    assert many["work"] == 536_870_912 + 8_192_000
    assert many["activations"] == 32_768 * (1_544 + 260)
    assert many["gradients"] == 8_298_880
    assert memory(config, 32, 1024, 2)["gradients"] == 0


def test_memory_of_ddp():
    """micro on 2: float32 gradients and the parameters computed with are whole, and half of them again is what this process is sent and
    sends; half of the masters and moments. On a GPU worst in the top layer's backward, on a processor at the loss."""
    needed = planned("micro", 2, parallel="ddp")["memory_bytes"]
    assert needed["triton"] == {
        "parameters": 16_670_016, "moments": 33_340_032, "gradients": 50_010_048, "gathered": 25_005_024, "unreduced": 2_359_296,
        "activations": 40_255_488, "work": 12_189_696, "context": 2_000_000_000, "total": 2_179_829_600,
    }
    assert needed["processor"] == {
        "parameters": 16_670_016, "moments": 33_340_032, "gradients": 50_010_048, "gathered": 33_340_032, "unreduced": 0,
        "activations": 150_016_000, "work": 50_331_648, "context": 300_000_000, "total": 633_707_776,
    }


def test_memory_of_ddp_where_a_layer_is_largest():
    """Vocabulary 64 and dim 64: w1's gradient until it is added, and gloo's copy of the head's."""
    config = ModelConfig(dim=64, n_layers=1, n_heads=2, vocab_size=64, multiple_of=32)
    assert memory(config, 1, 1024, 2, "ddp", "torch", "cpu")["unreduced"] == 49_152 + 16_384
    assert memory(config, 1, 1024, 2, "ddp", "torch", "cuda")["unreduced"] == 24_576


def test_memory_of_ddp_where_the_update_is_largest():
    """29,104,896 parameters and 64 tokens. Three arrays for AdamW in plain PyTorch, each as long as this process's part; on a processor
    gloo's copies, of all gradients before and of all parameters after it, may be more."""
    config = ModelConfig(dim=768, n_layers=4, n_heads=6, vocab_size=512, multiple_of=32, max_seq_len=256)

    def beside(R, device):
        parts = memory(config, 1, 64, R, "ddp", "torch", device)
        return parts["activations"], parts["unreduced"], parts["work"]

    assert beside(2, "cuda") == (0, 0, 174_629_376)
    assert beside(2, "cpu") == (0, 0, 174_629_376)
    assert beside(4, "cpu") == (0, 0, 116_419_584)


def test_what_a_layer_keeps():
    """dim 4, hidden 10, 2 heads."""
    config = ModelConfig(dim=4, n_layers=1, n_heads=2, vocab_size=10, multiple_of=2)
    assert kept_per_token(config) == 2 * (24 + 20) + 8
    assert kept_per_token(config, "torch") == 2 * (32 + 40) + 16
    assert kept_per_token(config, "torch", "cpu") == 4 * (40 + 40) + 16


def test_time_and_energy_of_65B_on_2048():
    """398,194,163,712 FLOPs a token, 2,048 tokens on each GPU, at 156e12 FLOP/s; 2047/2048 of 521,236,692,992 bytes, at 200 GB/s."""
    figures = planned("65B", 2048)
    assert (figures["rows"], figures["batch_size"], figures["micro_batches"]) == (1, 1, 1)
    assert figures["sent_bytes"] == pytest.approx(520_982_182_888)
    assert figures["sent_seconds"] == pytest.approx(2.604911, rel=1e-6)
    assert figures["compute_seconds"] == pytest.approx(5.227575, rel=1e-6)
    assert figures["waiting_seconds"] == 0
    assert figures["tokens_per_s_gpu"] == pytest.approx(391.769, rel=1e-6)
    assert figures["gpu_hours"] == pytest.approx(992_649.3, rel=1e-6)
    assert figures["days"] == pytest.approx(20.19549, rel=1e-6)
    assert figures["mwh"] == pytest.approx(436.7657, rel=1e-6)
    assert figures["tco2eq"] == pytest.approx(168.1548, rel=1e-6)


def test_the_papers_speed(monkeypatch):
    """65B at the 48 % that the paper reached: its 380 tokens/s on each GPU, its 21 days; from its GPU-hours, its energy."""
    monkeypatch.setattr(module, "ASSUMED_MFU", 0.48)
    figures = planned("65B", 2048)
    assert figures["tokens_per_s_gpu"] == pytest.approx(380, rel=0.02)
    assert figures["days"] == pytest.approx(21, rel=0.02)
    assert figures["paper"] == {"tokens_per_s_gpu": 380, "days": 21, "gpu_hours": 1_022_362, "mwh": 449, "tco2eq": 173}


@pytest.mark.parametrize("name", ["7B", "13B", "33B", "65B"])
def test_the_papers_energy(name):
    """Table 15 by its own formula, to the digits printed there; ours from our GPU-hours."""
    paper = planned(name, 2048)["paper"]
    assert paper["gpu_hours"] * 400 * 1.1 / 1e6 == pytest.approx(paper["mwh"], abs=1)
    assert paper["mwh"] * 0.385 == pytest.approx(paper["tco2eq"], abs=1)


def test_traffic_of_7B_on_8():
    """7/8 of 53,383,028,736 bytes in each of 256 micro-batches, over NVLink."""
    figures = planned("7B", 8)
    assert (figures["rows"], figures["batch_size"], figures["micro_batches"]) == (256, 1, 256)
    assert figures["sent_bytes"] == 11_957_798_436_864
    assert figures["sent_seconds"] == pytest.approx(39.85933, rel=1e-6)


def test_traffic_of_micro_on_2():
    """fsdp: half of 16,670,016 + 11,950,848 + 33,340,032 bytes; ddp: half of 6 x 8,335,008. The new parameters, 8,335,008 bytes, come when
    nothing is computed."""
    assert planned("micro", 2)["sent_bytes"] == 30_980_448
    figures = planned("micro", 2, parallel="ddp")
    assert figures["sent_bytes"] == 25_005_024
    assert figures["waiting_seconds"] == pytest.approx(27.78336e-6, rel=1e-6)
    third = figures["compute_seconds"] / 3
    assert figures["tokens_per_s_gpu"] == pytest.approx(1024 / (3 * third + 27.78336e-6), rel=1e-6)


def test_gradients_that_do_not_hide():
    """ddp, small on 16 A100: 15/16 of 160,081,920 bytes of gradients at 200 GB/s, behind a backward of 2/3 of 757.122 us (512 tokens of
    230,685,696 FLOPs); then 15/16 of 80,040,960 bytes of parameters."""
    figures = planned("small", 16, parallel="ddp")
    assert figures["sent_seconds"] == pytest.approx((750.384 + 375.192) * 1e-6, rel=1e-5)
    assert figures["waiting_seconds"] == pytest.approx((750.384 - 504.748 + 375.192) * 1e-6, rel=1e-5)


def test_a_wire_that_is_too_slow():
    """65B on 12 GPUs, the second machine with 4 cards, 100 GB/s. In a micro-batch 1.196904 s of gathering hide behind a forward of
    1.742525 s, but not 3.581099 s behind a backward of 3.485050 s; 171 times."""
    figures = planned("65B", 12)
    assert figures["rows"] == 171
    assert figures["sent_seconds"] == pytest.approx(171 * (1.196904 + 3.581099), rel=1e-6)
    assert figures["waiting_seconds"] == pytest.approx(171 * (3.581099 - 3.485050), rel=1e-4)


def test_forward_waits_for_its_parameters(monkeypatch):
    """65B on 2048 with cards of a tenth: 20 GB/s. 130.5 GB gathered before forward, 390.5 GB in backward."""
    monkeypatch.setitem(DATA_SHEETS, "a100", DATA_SHEETS["a100"]._replace(network=2.5e9))
    figures = planned("65B", 2048)
    assert figures["waiting_seconds"] == pytest.approx(26.04911 - 5.227575, rel=1e-5)


def test_rows_that_cannot_be_shared_evenly():
    """8 rows on 3 GPUs: 3 each, and one computes 2; the speed is that of 8 rows in the time of 9."""
    even, uneven = planned("micro", 2), planned("micro", 3)
    assert uneven["rows"] == 3
    assert uneven["tokens_per_s_gpu"] == pytest.approx(even["tokens_per_s_gpu"] * 8 / 9)


def test_micro_batches():
    """40 rows a step on 3 GPUs, 14 each, at most 8 at a time: two micro-batches."""
    preset = PRESETS["micro"]
    figures = scale(ModelConfig(**preset.model), TrainConfig(**preset.train | {"grad_accum_steps": 5}), 3)
    assert (figures["rows"], figures["batch_size"], figures["micro_batches"]) == (14, 8, 2)


def test_largest_batch():
    """The rows that fit do, and one more does not."""
    config, most = ModelConfig(**PRESETS["7B"].model), planned("7B", 8)["largest_batch_size"]
    fits, more = (memory(config, rows, 2048, 8, accumulates=True)["total"] for rows in (most, most + 1))
    assert fits <= 80 * GB < more
    assert planned("65B", 8)["largest_batch_size"] == 0


@pytest.mark.parametrize(("gpu", "gigabytes", "teraflops", "watts", "nvlink", "across"), [
    ("a100", 80, 312, 400, 300, 200), ("h100", 80, 989, 700, 450, 400), ("h200", 141, 989, 700, 450, 400)])
def test_data_sheets(gpu, gigabytes, teraflops, watts, nvlink, across):
    """7B: 41,254,674,432 FLOPs a token. Bandwidths in a machine of 8, and between machines, in GB/s."""
    figures, wide = planned("7B", 8, gpu=gpu), planned("7B", 16, gpu=gpu)
    assert DATA_SHEETS[gpu].memory == gigabytes * GB
    assert figures["tokens_per_s_gpu"] == pytest.approx(teraflops * 1e12 / 2 / 41_254_674_432)
    assert figures["mwh"] == pytest.approx(figures["gpu_hours"] * watts * 1.1e-6)
    assert figures["sent_bytes"] / figures["sent_seconds"] == pytest.approx(nvlink * GB)
    assert wide["sent_bytes"] / wide["sent_seconds"] == pytest.approx(across * GB)


def test_every_gpu_has_a_data_sheet():
    assert tuple(DATA_SHEETS) == GPUS


def test_one_gpu():
    """It has everything, 18 bytes a parameter, and sends nothing."""
    figures = planned("7B", 1, gpu="h200")
    assert figures["sent_bytes"] == figures["waiting_seconds"] == 0
    parts = figures["memory_bytes"]["triton"]
    assert sum(parts[name] for name in ("parameters", "moments", "gradients", "gathered")) == 18 * 6_738_415_616
    parts = figures["memory_bytes"]["processor"]                 # in float32 there is no second copy to compute with
    assert sum(parts[name] for name in ("parameters", "moments", "gradients", "gathered")) == 16 * 6_738_415_616
    page = format_scale(TrainConfig(**PRESETS["7B"].train), figures)
    assert "on 1 GPU " in page
    assert "wire" not in page and "NVLink" not in page


def test_the_page(capsys):
    status, out, _ = call(capsys, "info", "65B", "--gpus", 2048)
    assert status == 0
    page = out[out.index("  on 2,048 GPUs"):]
    for words in ("predicted: a100, 80 GB, 312 TFLOP/s; fsdp",
                  "43.3 GB of each GPU with engine triton; with torch 62.1 GB; on processors, in float32, 128 GB a process",
                  "triton: parameters 128 MB, moments 255 MB",
                  "1 row of 2,048 tokens on each GPU",
                  "521 GB sent by each GPU in a step, which takes 2.6 s, and arithmetic 5.23 s: hidden",
                  "392 tokens/s a GPU, 50% of the peak; the paper: about 380, on 2048 A100",
                  "20 days, 993,000 GPU-hours; the paper: about 21 days, 1,022,362 A100 GPU-hours",
                  "437 MWh, 168 t CO2eq: GPU-hours x 400 W x 1.1, x 0.385 kg/kWh; the paper: 449 MWh, 173 t",
                  "50% of 312 TFLOP/s (dense bfloat16)", "a card of 200 Gbit/s for each, and rings use all cards: 200 GB/s; no latency",
                  "2 GB of a GPU for CUDA's context",
                  "every GPU draws 400 W all the time; PUE 1.1"):
        assert words in page
    assert "more than its" not in page
    page = call(capsys, "info", "65B", "--gpus", 12)[1]
    assert "GB of each GPU with engine triton, more than its 80 GB" in page
    assert "not even one row fits" in page
    assert "16.4 s of waiting" in page


def test_json(capsys):
    status, out, _ = call(capsys, "info", "micro", "--gpus", 2, "--gpu", "h100", "--parallel", "ddp", "--json")
    figures = json.loads(out)["gpus"]
    assert status == 0
    assert (figures["count"], figures["gpu"], figures["parallel"], figures["fits"], figures["paper"]) == (2, "h100", "ddp", True, None)
    assert call(capsys, "info", "--help")[0] == 0
    described = call(capsys, "info", "--help")[1]
    for key in figures:
        assert f'"{key}"' in described
    assert "gpus" not in json.loads(call(capsys, "info", "micro", "--json")[1])


def test_training_that_is_unknown():
    """Of a model that was trained elsewhere nobody knows for how long."""
    figures = scale(ModelConfig(**PRESETS["micro"].model), TrainConfig(), 4)
    assert [figures[name] for name in ("days", "gpu_hours", "mwh", "tco2eq")] == 4 * [None]
    page = format_scale(TrainConfig(), figures)
    assert "tokens/s" in page
    assert "MWh" not in page
    json.dumps(figures, allow_nan=False)


BAD_USE = {
    "no gpus": (["65B", "--gpus", "0"], r"--gpus must be at least 1, got 0"),
    "more than rows": (["micro", "--gpus", "9"], r"--gpus must be at most the rows of a step, 8 \(batch_size x grad_accum_steps\), got 9"),
    "not a number": (["65B", "--gpus", "many"], r"argument --gpus: invalid int value: 'many'"),
    "fsdp alone": (["micro", "--gpus", "1", "--parallel", "fsdp"], r"--gpus must be at least 2 with --parallel fsdp, got 1"),
    "a gpu without a number": (["65B", "--gpu", "h100"], r"--gpus must be given with --gpu, got none"),
    "a way without a number": (["65B", "--parallel", "ddp"], r"--gpus must be given with --parallel, got none"),
    "an unknown gpu": (["65B", "--gpus", "8", "--gpu", "b200"], r"invalid choice: 'b200'"),
}


@pytest.mark.parametrize("case", BAD_USE)
def test_bad_use(case, capsys):
    arguments, message = BAD_USE[case]
    status, out, err = call(capsys, "info", *arguments)
    assert status == 2
    assert out == ""
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", err), err
