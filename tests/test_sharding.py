"""The model with its parameters sharded over two processes (PyTorch's FSDP2, on the processor) gives the gradients of one process."""
import os

import pytest
import torch
from tolerances import MODEL_FLOAT32
from torch import distributed

from kernels.model import KERNELS, Llama
from minillama.config import ModelConfig

CONFIG = ModelConfig(dim=24, n_layers=2, n_heads=3, vocab_size=37, multiple_of=10, max_seq_len=16)
RANKS = 2


def batch():
    return torch.randint(CONFIG.vocab_size, (2, 2 * RANKS, 9), generator=torch.Generator().manual_seed(0))


def one_rank(rank, folder, kernels):
    """Shard every layer and the rest, take this rank's rows of the batch, and let rank 0 write the gathered gradients."""
    distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    model, mesh = Llama(CONFIG, kernels), init_device_mesh("cpu", (RANKS,))
    for part in (*model.layers, model):
        fully_shard(part, mesh=mesh)
    tokens, targets = batch()[:, rank::RANKS]
    model(tokens, targets).backward()
    grads = {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}
    if rank == 0:
        torch.save(grads, folder / "grads.pt")
    distributed.barrier()
    os._exit(0)                                                  # gloo's threads may still run, and abort an exit that takes its time


@pytest.mark.parametrize("kernels", KERNELS)
def test_two_shards_are_one_model(kernels, tmp_path):
    if kernels == "triton":
        pytest.importorskip("triton", reason="triton is not installed: it exists for Linux alone")
        if torch.cuda.is_available():
            pytest.skip("the shards are on the processor, where kernels run only if they are interpreted")
    torch.multiprocessing.spawn(one_rank, (tmp_path, kernels), RANKS)
    gathered = torch.load(tmp_path / "grads.pt")
    whole = Llama(CONFIG)
    whole(*batch()).backward()
    for name, parameter in whole.named_parameters():
        largest = parameter.grad.abs().max()
        assert (gathered[name] - parameter.grad).abs().max() <= MODEL_FLOAT32 * largest, name
