"""LLaMA as a torch.nn.Module: the composition of minillama/nn/model.py, over one of two sets of ops.

    logits = output rmsnorm(block_L(... block_1(tok_embeddings[tokens])))

`reference` is plain PyTorch under autograd and runs on every device; `triton` runs the kernels of this folder. Parameters have the
names of `minillama.nn.param_shapes`. CPU twin: minillama/nn/model.py, and minillama/nn/decode.py for the key/value cache.
"""
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import ModuleList, Parameter

from minillama.config import ATTENTIONS
from minillama.errors import InputError
from minillama.nn import decode, init_params
from minillama.nn.model import layer_params

from . import reference

KERNELS = ("reference", "triton")


class Ops(NamedTuple):
    """The ops that a model is built from."""

    embedding: Callable  # (tokens, weight) -> x
    block: Callable  # (x, params, cos, sin, config) -> x
    rmsnorm: Callable  # (x, weight, eps) -> x
    linear_cross_entropy: Callable  # (x, weight, targets) -> 0-dim float32, mean nats over the scored tokens


def _linear_cross_entropy(x, weight, targets):
    return reference.cross_entropy_forward(reference.linear_forward(x, weight).float(), targets)


def _ops(kernels, attention):
    """The Ops of a model. Triton is imported only if it is chosen."""
    if kernels not in KERNELS:
        raise InputError(f"kernels must be one of {', '.join(KERNELS)}, got {kernels!r}")
    if attention not in ATTENTIONS:
        raise InputError(f"attention must be one of {', '.join(ATTENTIONS)}, got {attention!r}")
    if kernels == "reference":
        return Ops(reference.embedding_forward, reference.block_forward, reference.rmsnorm_forward, _linear_cross_entropy)
    from .block import block
    from .embedding import embedding
    from .linear_cross_entropy import linear_cross_entropy
    from .rmsnorm import rmsnorm

    return Ops(embedding, partial(block, attention=attention), rmsnorm, linear_cross_entropy)


class Layer(torch.nn.Module):
    """The 9 parameters of one layer, and the op that computes with them."""

    def __init__(self, config, block, params):
        super().__init__()
        self.config, self.block = config, block
        for name, tensor in params.items():
            self.register_parameter(name, Parameter(tensor))

    def params(self):
        """The parameters under their short names. Where parameters are split over processes, these are the gathered ones."""
        return dict(self.named_parameters())

    def forward(self, x, cos, sin):
        """(B, T, D) -> (B, T, D)."""
        return self.block(x, self.params(), cos, sin, self.config)

    def decode(self, x, cos, sin, kv):
        """forward for the next positions, in plain PyTorch; kv as in reference.block_forward."""
        return reference.block_forward(x, self.params(), cos, sin, self.config, kv=kv)


class Llama(torch.nn.Module):
    """The model. The loss is computed inside `forward`, where a library that shards parameters has gathered the output head.

    kernels:       str           "reference" or "triton"
    attention:     str           of the Triton block: "triton", "cudnn" or "flash"
    dtype, device:               of fresh parameters, those of init_params(config); unused if params are given
    params:        dict          name -> tensor, used as they are: views into a larger tensor stay views
    """

    def __init__(self, config, kernels="reference", attention="triton", dtype=torch.float32, device="cpu", params=None):
        super().__init__()
        self.config, self.ops = config, _ops(kernels, attention)
        if params is None:
            params = {name: torch.tensor(array, dtype=dtype, device=device) for name, array in init_params(config).items()}
        self.tok_embeddings = Parameter(params["tok_embeddings"])
        self.layers = ModuleList(Layer(config, self.ops.block, layer_params(params, layer)) for layer in range(config.n_layers))
        self.norm, self.output = Parameter(params["norm"]), Parameter(params["output"])
        self._tables = None

    def tables(self, start, end):
        """cos, sin of the positions from start to end - 1: (T, Dh/2) float32 each, whatever the dtype of the model."""
        device = self.norm.device
        if self._tables is None or self._tables[0].device != device:
            with torch.inference_mode(False):                    # tables made while decoding must also work in a later backward
                tables = reference.rope_tables(self.config.max_seq_len, self.config.head_dim, self.config.rope_theta)
                self._tables = tuple(table.to(device) for table in tables)
        return tuple(table[start:end] for table in self._tables)

    def forward(self, tokens, targets=None):
        """Logits, or the loss.

        Args:
            tokens:  (B, T) int64
            targets: (B, T) int64, optional    ids, or IGNORE where nothing is scored

        Returns:
            logits (B, T, V); with targets the mean of nats over the scored tokens, () float32, 0 if there are none
        """
        x = self.ops.embedding(tokens, self.tok_embeddings)
        cos, sin = self.tables(0, tokens.shape[1])
        for layer in self.layers:
            x = layer(x, cos, sin)
        x = self.ops.rmsnorm(x, self.norm, self.config.norm_eps)
        if targets is None:
            return reference.linear_forward(x, self.output)
        return self.ops.linear_cross_entropy(x, self.output, targets)

    def decode(self, tokens, cache):
        """Logits (B, T, V) of the next T positions; advances the cache. Plain PyTorch for both sets of ops: with one
        token at a time, most of the time goes into reading the weights."""
        end = cache.length + tokens.shape[1]
        cos, sin = self.tables(cache.length, end)
        x = reference.embedding_forward(tokens, self.tok_embeddings)
        for i, layer in enumerate(self.layers):
            x = layer.decode(x, cos, sin, partial(cache.extend, i))
        cache.length = end
        return reference.linear_forward(reference.rmsnorm_forward(x, self.norm, self.config.norm_eps), self.output)


class KVCache(decode.KVCache):
    """minillama.nn.decode.KVCache on a device."""

    def __init__(self, config, batch_size=1, capacity=None, dtype=torch.float32, device="cpu"):
        capacity = config.max_seq_len if capacity is None else capacity
        shape = (2, config.n_layers, batch_size, capacity, config.n_heads, config.head_dim)
        self.keys, self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0
