"""Decoding with a key/value cache: each new token is computed once, and attends to the stored k and v of all tokens before it.

A causal model never changes what it computed for earlier positions, so their k and v can be kept: T tokens cost O(T) block
evaluations instead of O(T^2). The logits are those of model_forward. Lesson: lessons/13_train.ipynb.
"""
import numpy as np

from .block import block_forward
from .embedding import embedding_forward
from .linear import linear_forward
from .model import check_tokens, layer_params
from .rmsnorm import rmsnorm_forward
from .rope import rope_tables


class KVCache:
    """Rotated keys and values of every layer, for up to `capacity` positions.

    keys, values: (L, B, capacity, H, Dh);  length: positions filled so far.
    """

    def __init__(self, config, batch_size=1, capacity=None, dtype=np.float32):
        capacity = config.max_seq_len if capacity is None else capacity
        shape = (config.n_layers, batch_size, capacity, config.n_heads, config.head_dim)
        self.keys, self.values = np.zeros(shape, dtype), np.zeros(shape, dtype)
        self.tables = rope_tables(capacity, config.head_dim, config.rope_theta, dtype)
        self.length = 0

    def extend(self, layer, k, v):
        """Store k, v (B, T, H, Dh) of the next T positions of one layer; return all kept so far, (B, length + T, H, Dh)."""
        end = self.length + k.shape[1]
        self.keys[layer, :, self.length:end] = k
        self.values[layer, :, self.length:end] = v
        return self.keys[layer, :, :end], self.values[layer, :, :end]


def model_decode(tokens, params, config, cache):
    """Logits of the next T positions, given that `cache` holds the positions before them. Advances the cache by T.

    Args:
        tokens: (B, T) int     a complete prompt, or one new token per row
        params: dict           keys of param_shapes(config)
        cache:  KVCache        of batch size B

    Returns:
        logits: (B, T, V)

    Raises:
        InputError: an id out of range, or more positions than max_seq_len
    """
    check_tokens(tokens, config, past=cache.length)
    positions = slice(cache.length, cache.length + tokens.shape[1])
    cos, sin = (table[positions] for table in cache.tables)      # (T, Dh/2): the new positions only
    x, _ = embedding_forward(tokens, params["tok_embeddings"])
    for layer in range(config.n_layers):
        x, _ = block_forward(x, layer_params(params, layer), cos, sin, config, kv=lambda k, v, layer=layer: cache.extend(layer, k, v))
    cache.length += tokens.shape[1]
    x, _ = rmsnorm_forward(x, params["norm"], config.norm_eps)
    return linear_forward(x, params["output"])[0]
