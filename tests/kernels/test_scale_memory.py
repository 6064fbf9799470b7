"""What `info --gpus` says of memory, beside what the engines of several processes then use, and what a layer keeps."""
import ctypes
import gc
import json
import os
import platform
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels import reference
from kernels.model import Llama
from minillama.config import ModelConfig, TrainConfig, preset
from minillama.machine import peak_memory
from minillama.report.scale import kept_per_token, memory
from minillama.world import open_world

if not torch.distributed.is_available():
    pytest.skip("this PyTorch is built without torch.distributed", allow_module_level=True)

from ranks import Ranks

from kernels.parallel import ENGINES

TINY = ModelConfig(dim=16, n_layers=2, n_heads=2, vocab_size=33, multiple_of=8, max_seq_len=16)
MICRO = ModelConfig(**preset("micro").model)
WIDE = ModelConfig(dim=512, n_layers=4, n_heads=4, vocab_size=256, multiple_of=32, max_seq_len=64)  # mostly layers
HEAD = ModelConfig(dim=256, n_layers=1, n_heads=4, vocab_size=16001, multiple_of=32, max_seq_len=64)  # mostly embedding and head
CASES = {  # processes -> how they share, the model, and a process's rows in each of so many micro-batches, of so many tokens
    2: [("fsdp", MICRO, 4, 1, 256), ("fsdp", WIDE, 1, 2, 64), ("ddp", MICRO, 1, 1, 256)],
    3: [("fsdp", MICRO, 2, 1, 128), ("fsdp", HEAD, 1, 1, 64), ("ddp", WIDE, 1, 1, 64)],
}


def one_rank(size, folder):
    """Write what a process uses above what it had before its engine was built. Its allocator gives back what is freed, so that only what
    is alive counts: in `train`, which keeps memory for reuse (minillama/machine.py), the gaps in the heap come on top."""
    libc = ctypes.CDLL(None)
    for option in (-3, -1):                                      # both thresholds of malloc that machine.prepare raises
        libc.mallopt(option, 1 << 16)
    with open_world(60) as world:
        for parallel in ("fsdp", "ddp"):
            one_step(parallel, world, TINY, 1, 1, 16)            # what is imported and made once
        used = [one_step(*case[:1], world, *case[1:]) for case in CASES[size]]
        (Path(folder) / f"{world.rank}.json").write_text(json.dumps(used))
    os._exit(0)


def one_step(parallel, world, config, rows, accum, T):
    """Bytes that an engine and one step of it use at most."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")                # the peak starts anew
    before = peak_memory()
    recipe = TrainConfig(batch_size=rows, grad_accum_steps=accum * world.size, seq_len=T)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (recipe.grad_accum_steps, 2, rows, T))
    ENGINES[parallel](world, config, recipe, device="cpu", threads=1).train_step(list(map(tuple, tokens)), 1e-3)
    return peak_memory() - before


@pytest.mark.skipif(platform.system() != "Linux" or platform.libc_ver()[0] != "glibc", reason="measured on Linux, with glibc")
@pytest.mark.parametrize("size", CASES)
def test_memory_of_a_process(size, tmp_path):
    """The promise is 15 %; what is missing, 1 to 4 %, are pages of code and small arrays."""
    ended = Ranks(tmp_path, size, one_rank, size, tmp_path).wait()
    assert [one.status for one in ended] == [0] * size, ended
    used = np.array([json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(size)])
    predicted = []
    for parallel, config, rows, accum, T in CASES[size]:
        parts = memory(config, rows, T, size, parallel, "torch", "cpu", accum > 1)
        predicted.append(parts["total"] - parts["context"])
    print(np.round(used / 1e6, 1), np.round(np.array(predicted) / 1e6, 1))
    assert used == pytest.approx(np.tile(predicted, (size, 1)), rel=0.06)


def test_what_autograd_keeps_of_a_layer():
    """The storages behind what autograd saves, without the parameters and the tables of angles."""
    T, config = 16, ModelConfig(dim=32, n_layers=1, n_heads=4, vocab_size=8, multiple_of=24, max_seq_len=16)
    layer, tables, storages = Llama(config).layers[0], reference.rope_tables(T, config.head_dim), {}
    known = {tensor.untyped_storage().data_ptr() for tensor in (*layer.parameters(), *tables)}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = layer(torch.ones(3, T, config.dim, requires_grad=True), *tables)
    assert sum(storage.nbytes() for storage in storages.values()) == 3 * T * kept_per_token(config, "torch", "cpu")
    del out

