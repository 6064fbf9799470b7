"""LLaMA: embedding, L blocks, a final RMSNorm, and an output head that is not tied to the embedding.

    logits = output rmsnorm(block_L(... block_1(tok_embeddings[tokens])))

[LLaMA §2.2], with the names of Meta's code. GPU twin: kernels/model.py. Lesson: lessons/07_llama.ipynb.
"""
import math

import numpy as np

from ..errors import InputError
from .block import block_backward, block_forward
from .embedding import embedding_backward, embedding_forward
from .linear import linear_backward, linear_forward
from .rmsnorm import rmsnorm_backward, rmsnorm_forward
from .rope import rope_tables

BLOCK_NAMES = ("attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3")


def param_shapes(config):
    """Name -> shape of every parameter, in the model's order. Nothing is allocated: 65B is as quick as nano."""
    D, F, V = config.dim, config.hidden_dim, config.vocab_size
    block = {
        "attention_norm": (D,), "wq": (D, D), "wk": (D, D), "wv": (D, D), "wo": (D, D),
        "ffn_norm": (D,), "w1": (F, D), "w2": (D, F), "w3": (F, D),
    }
    shapes = {"tok_embeddings": (V, D)}
    for layer in range(config.n_layers):
        shapes.update({f"layers.{layer}.{name}": shape for name, shape in block.items()})
    return shapes | {"norm": (D,), "output": (V, D)}


def count_params(config):
    """Number of parameters: int."""
    return sum(math.prod(shape) for shape in param_shapes(config).values())


def fresh_params(config, seed=0, dtype=np.float32, embedding_std=0.02, std=0.02):
    """Fresh parameters, one after the other: norm gains 1, matrices normal with standard deviation `std`.

    `wo` and `w2` write into the residual stream, 2 L times in all, and start smaller by a factor 1/sqrt(2 L) so that the stream's
    variance does not grow with depth (Radford et al. 2019, GPT-2, §2.3). Drawn in float32 whatever the dtype, so that
    one seed means one model.

    Args:
        embedding_std: float    of `tok_embeddings`. The stream starts as the embedding and every block adds to it; in a short
                                run, a larger one lets the first layers tell the tokens apart from the start
        std:           float    of all other matrices; 0 gives each one 1/sqrt(its inputs), with which an output is as large as an input
                                at any width. 0.02 is that of 2500 inputs: at a width of 128, every layer makes its input smaller

    Yields:
        name, array: in the order and with the shapes of param_shapes(config)
    """
    rng = np.random.default_rng(seed)
    for name, shape in param_shapes(config).items():
        if len(shape) == 1:
            yield name, np.ones(shape, dtype)
            continue
        size = embedding_std if name == "tok_embeddings" else std or 1 / math.sqrt(shape[1])
        if name.endswith((".wo", ".w2")):
            size /= math.sqrt(2 * config.n_layers)
        yield name, (rng.standard_normal(shape, np.float32) * np.float32(size)).astype(dtype, copy=False)


def init_params(config, seed=0, dtype=np.float32, embedding_std=0.02, std=0.02):
    """`fresh_params` as a dict: the whole model in memory."""
    return dict(fresh_params(config, seed, dtype, embedding_std, std))


def layer_params(params, layer):
    """The 9 arrays of one block under their short names (views, nothing is copied)."""
    return {name: params[f"layers.{layer}.{name}"] for name in BLOCK_NAMES}


def check_tokens(tokens, config, past=0):
    """Raise InputError unless every id is below vocab_size and `past` + T positions fit the context."""
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < config.vocab_size:
        worst = int(tokens.max() if tokens.max() >= config.vocab_size else tokens.min())
        raise InputError(f"a token id must be from 0 to {config.vocab_size - 1} (the vocabulary), got {worst}")
    if past + tokens.shape[1] > config.max_seq_len:
        raise InputError(f"a sequence must have at most {config.max_seq_len} tokens (max_seq_len), got {past + tokens.shape[1]}")


def model_forward(tokens, params, config):
    """Logits of the next token at every position.

    Args:
        tokens: (B, T) int     ids in [0, V), T <= max_seq_len
        params: dict           keys of param_shapes(config)
        config: ModelConfig

    Returns:
        logits: (B, T, V) dtype of the parameters
        cache:  one entry per child, in forward's order

    Raises:
        InputError: an id out of range, or T above max_seq_len
    """
    check_tokens(tokens, config)
    x, embedding = embedding_forward(tokens, params["tok_embeddings"])
    cos, sin = rope_tables(tokens.shape[1], config.head_dim, config.rope_theta, x.dtype)
    blocks = []
    for layer in range(config.n_layers):
        x, block = block_forward(x, layer_params(params, layer), cos, sin, config)
        blocks.append(block)
    x, norm = rmsnorm_forward(x, params["norm"], config.norm_eps)
    logits, output = linear_forward(x, params["output"])
    return logits, (embedding, blocks, norm, output)


def model_backward(dlogits, cache):
    """Gradients of model_forward: its lines in reverse order.

    Args:
        dlogits: (B, T, V)

    Returns:
        grads: dict with the keys, shapes and dtypes of params
    """
    embedding, blocks, norm, output = cache
    grads = {}
    dx, grads["output"] = linear_backward(dlogits, output)
    dx, grads["norm"] = rmsnorm_backward(dx, norm)
    for layer, block in reversed(list(enumerate(blocks))):
        dx, block_grads = block_backward(dx, block)
        grads.update({f"layers.{layer}.{name}": grad for name, grad in block_grads.items()})
    grads["tok_embeddings"] = embedding_backward(dx, embedding)
    return grads
