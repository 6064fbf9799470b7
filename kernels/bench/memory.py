"""The bytes that a layer keeps for backward, per token, counted without a GPU: `python -m kernels.bench --memory`.

Weights are not counted, and memory that several tensors share is counted once. Ours is counted on tensors without memory; the others
run on the processor, at T tokens. On CUDA, PyTorch's own ops may keep other tensors.
"""
import torch

from minillama.config import ModelConfig
from minillama.nn import param_shapes

from .. import launch, reference
from ..block import block_forward

T = 64  # the number per token does not depend on it: no square of attention scores is kept
MODELS = [ModelConfig(dim=dim, n_layers=1, n_heads=dim // 128, vocab_size=32000, multiple_of=128) for dim in (2048, 4096)]


def _storages(tree):
    """Unique storages in nested containers of tensors: id -> bytes."""
    if isinstance(tree, torch.Tensor):
        storage = tree.untyped_storage()
        return {storage._cdata: storage.nbytes()}
    branches = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, tuple | list) else ()
    return {storage: size for branch in branches for storage, size in _storages(branch).items()}


def _without(kept, other):
    return sum(size for storage, size in _storages(kept).items() if storage not in _storages(other))


def kept_by_autograd(function, without=()):
    """Bytes of the unique storages that autograd keeps to differentiate function(), without those of the tensors in `without`."""
    saved = []

    def pack(tensor):
        saved.append(tensor)                                     # kept alive, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = function()                                         # kept alive too: it holds what only backward needs
    size = _without(saved, list(without))
    del out
    return size


def _block_arguments(config, T, device, dtype):
    """x (1, T, D), the 9 weights of a block, cos, sin."""
    shapes = {name.removeprefix("layers.0."): shape for name, shape in param_shapes(config).items() if name.startswith("layers.0.")}
    params = {name: torch.zeros(shape, dtype=dtype, device=device) for name, shape in shapes.items()}
    tables = (table.to(device) for table in reference.rope_tables(T, config.head_dim, config.rope_theta))
    return torch.zeros(1, T, config.dim, dtype=dtype, device=device), params, *tables


def kept_by_ours(config, T=T):
    """Bytes per token of block_forward's cache, for 2-byte elements."""
    dtype = torch.float16 if launch.INTERPRETED else torch.bfloat16  # as many bytes, and the interpreter accepts it
    x, params, cos, sin = _block_arguments(config, T, "meta", dtype)
    with launch.record():
        _, cache = block_forward(x, params, cos, sin, config)
    return _without(cache, [params, cos, sin]) / T


def kept_by_reference(config, T=T):
    """The same for the plain PyTorch block under autograd."""
    x, params, cos, sin = _block_arguments(config, T, "cpu", torch.bfloat16)
    leaves = [tensor.requires_grad_() for tensor in (x, *params.values())]
    return kept_by_autograd(lambda: reference.block_forward(x, params, cos, sin, config), [*leaves[1:], cos, sin]) / T


KEPT = {"`kernels/block.py`": kept_by_ours, "plain autograd of the same layer": kept_by_reference}


def rows():
    """The table of kernels/README.md: a line for each way, for MODELS."""
    return [f"| {name} | {' | '.join(f'{kept(config):,.0f}' for config in MODELS)} |" for name, kept in KEPT.items()]
