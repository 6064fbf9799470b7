"""What each process of test_fsdp.py runs: in a module that it can import by name, as a spawned process must."""
import os

import torch
from torch import distributed

from kernels.model import Llama
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
