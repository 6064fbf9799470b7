"""Several processes train the run that one trains: losses, gradients, checkpoints; on gloo, interpreted kernels included."""
import json
import os
import socket
import struct
import time

import numpy as np
import pytest
import torch
from helpers import batch, split
from ranks import SHAPE, Ranks, command, same_curve
from tolerances import INTERCHANGE, TWIN_RUN_BFLOAT16

from kernels.engine import TorchEngine
from kernels.parallel import ENGINES
from minillama.config import ModelConfig, TrainConfig
from minillama.nn import count_params, param_shapes
from minillama.world import open_world


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("size", [2, 3])
def test_losses_are_those_of_one_process(parallel, size, documents, alone, tmp_path):
    """With 3 processes, the 8 rows of a step are 3, 3 and 2."""
    ranks = Ranks(tmp_path, size, command, "train", "--engine", "torch", "--device", "cpu", "--parallel", parallel, "--data", documents,
                  "--out", tmp_path / "run", *SHAPE)
    ended = ranks.wait()
    assert [one.status for one in ended] == [0] * size, ended
    assert f"{parallel} over {size} processes" in ended[0].out
    assert not any(one.out + one.err for one in ended[1:])
    same_curve(tmp_path / "run", alone)


# ------------------------------------------------------------------------------------------------------------------ one step, inside

CONFIG = ModelConfig(dim=12, n_layers=2, n_heads=3, vocab_size=11, multiple_of=5, max_seq_len=16)  # few sizes that 2 or 3 divide
LARGER = ModelConfig(dim=96, n_layers=2, n_heads=3, vocab_size=66, multiple_of=6, max_seq_len=16)  # both divide all, and headers are small
RECIPE = TrainConfig(lr=1e-2, seed=3, embedding_std=1.0, init_std=0)  # gradients of norm gains are not mere rounding
STEPS = [split(batch(CONFIG, 10, 7, seed), 3, 6, 9) for seed in range(3)]  # 2 processes have 3 + 2 rows each, 3 have 3 + 1, some filled up


def take_steps(folder, parallel, kernels, dtype, config, device, batches):
    """What each process does: some steps. Rank 0 writes the state, each one what it holds and what it has sent."""
    with open_world(30) as world:
        engine = ENGINES[parallel](world, config, RECIPE, device=device, kernels=kernels, dtype=dtype)
        results = [engine.train_step(step, 1e-2) for step in batches[:-1]]
        before = bytes_sent()
        results.append(engine.train_step(batches[-1], 1e-2))
        sent = bytes_sent() - before
        nats, count = engine.loss(*STEPS[0][0])
        print("a line")
        moments = sum(tensor.numel() for kind in (engine._m, engine._v)
                      for tensor in (kind.values() if isinstance(kind, dict) else [kind.flat]))
        own = {"moments": moments, "sent": sent, "results": results, "nats": nats, "count": count}
        (folder / f"{world.rank}.json").write_text(json.dumps(own))

        def write():
            state = engine.state()
            np.savez(folder / "state.npz", **{f"{kind}.{name}": state[kind][name] for kind in ("params", "m", "v") for name in state[kind]})

        world.first(write, engine)
    return 0


def bytes_sent():
    """Bytes that this process has sent to others over TCP, by Linux's struct tcp_info."""
    time.sleep(0.2)                                              # until what was queued is sent
    total = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(descriptor))) as connection:
                total += struct.unpack_from("Q", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 200)[0]
        except (OSError, struct.error):                          # no socket, or not TCP
            pass
    return total


def steps(tmp_path, size, parallel, kernels="reference", dtype=None, config=CONFIG, device="cpu", batches=STEPS):
    """State, by "params.NAME", "m.NAME", "v.NAME", and what each process found."""
    ended = Ranks(tmp_path, size, take_steps, tmp_path, parallel, kernels, dtype, config, device, batches).wait()
    assert all(one.status == 0 for one in ended), ended
    assert [one.out for one in ended] == ["a line\n", *[""] * (size - 1)]
    with np.load(tmp_path / "state.npz") as arrays:
        state = {name: arrays[name] for name in arrays.files}
    return state, [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(size)]


def same_state(state, engine):
    """Moments relative to the largest of a tensor; parameters not: AdamW makes a step of the size lr of the smallest gradient."""
    whole = engine.state()
    for kind in ("params", "m", "v"):
        for name, array in whole[kind].items():
            scale = 1 if kind == "params" else np.abs(array).max()
            assert np.abs(state[f"{kind}.{name}"] - array).max() <= INTERCHANGE * scale, (kind, name)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("size, kernels", [(2, "reference"), (3, "reference"), (2, "triton")])
def test_steps_are_those_of_one_process(size, kernels, parallel, tmp_path):
    """Parameters and both moments, hence gradients; with accumulation, padded rows and rows that score unequal numbers of tokens. And no
    process holds more than its share of the moments: of each bucket (ddp) or tensor (fsdp), rounded up to an element, or to a row."""
    batches = STEPS
    if kernels == "triton":
        pytest.importorskip("triton", reason="triton is not installed: it exists for Linux alone")
        if torch.cuda.is_available():
            pytest.skip("kernels run on the processor only if they are interpreted")
        batches = STEPS[:1]                                      # interpreted, it takes seconds
    state, own = steps(tmp_path, size, parallel, kernels, batches=batches)
    engine = TorchEngine(CONFIG, RECIPE, device="cpu")
    results = [engine.train_step(step, 1e-2) for step in batches]
    same_state(state, engine)
    nats, count = engine.loss(*STEPS[0][0])
    shapes = param_shapes(CONFIG)
    share = count_params(CONFIG) / size + len(shapes)
    if parallel == "fsdp":
        share = sum(-(-shape[0] // size) * int(np.prod(shape[1:])) for shape in shapes.values())
    for one in own:
        assert one["results"] == own[0]["results"]               # to the bit: all clip alike
        assert np.allclose(one["results"], results, rtol=INTERCHANGE)
        assert one["count"] == count and np.isclose(one["nats"], nats, rtol=INTERCHANGE)
        assert one["moments"] <= 2 * share
    assert sum(one["moments"] for one in own) >= 2 * count_params(CONFIG)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_bfloat16_keeps_float32_masters(parallel, tmp_path):
    """The first loss is that of one process, which rounds the same numbers; then rounding tells them apart. What is learned is float32."""
    state, own = steps(tmp_path, 2, parallel, dtype="bfloat16")
    engine = TorchEngine(CONFIG, RECIPE, device="cpu", dtype="bfloat16")
    losses = [engine.train_step(batches, 1e-2).loss for batches in STEPS]
    ours = [loss for loss, _ in own[0]["results"]]
    assert np.isclose(ours[0], losses[0], rtol=INTERCHANGE) and np.allclose(ours, losses, rtol=TWIN_RUN_BFLOAT16)
    masters = state["params.output"]
    assert (masters != torch.tensor(masters).bfloat16().float().numpy()).any()


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="the system does not count what a connection has sent")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("size", [2, 3])
def test_bytes_on_the_wire(parallel, size, tmp_path):
    """By the formulas of parallel.py, with gloo's sums of gradients everywhere; what fsdp keeps gathered, the root's, travels once."""
    _, own = steps(tmp_path, size, parallel, config=LARGER, batches=STEPS[:1])
    whole, root = 4 * count_params(LARGER), 4 * (2 * LARGER.vocab_size + 1) * LARGER.dim
    if parallel == "ddp":
        expected = 2 * whole + whole                             # gradients summed, parameters gathered
    else:
        expected = 2 * (2 * whole + 2 * whole - root)            # two micro-batches
    for one in own:
        assert 1 <= one["sent"] / ((size - 1) / size * expected) < 1.03


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", ["reference", "triton"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_gpus_take_the_steps_of_one(parallel, kernels, tmp_path):
    """On NCCL: over three GPUs, or as many as there are; over a single one every collective is made, too."""
    state, own = steps(tmp_path, min(torch.cuda.device_count(), 3), parallel, kernels, "float32", device="cuda")
    engine = TorchEngine(CONFIG, RECIPE, device="cuda", kernels=kernels, dtype="float32")
    results = [engine.train_step(batches, 1e-2) for batches in STEPS]
    same_state(state, engine)
    assert all(np.allclose(one["results"], results, rtol=INTERCHANGE) for one in own)
