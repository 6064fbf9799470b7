"""A small model with everything that a wrong conversion would show: heads of 12 channels, gains that are not 1, an unusual eps and
base of RoPE, a tokenizer with scores, double spaces and bytes. For the tests of minillama/interop."""
import functools

import numpy as np

from minillama.config import ModelConfig
from minillama.interop import Model
from minillama.nn import param_shapes
from minillama.text.sources import builtin_sources
from minillama.text.tokenizer import Tokenizer

ODD_TEXTS = [
    "", " ", "  ", "a  b", " leading", "trailing ", "x\ny\t z\r\n", "2023 + 1999", "naïve Ünïcödé", "日本語", "😀 a\u200d👩‍👩",
    "<s> </s> <unk>", "<0x0A>", "\u2581x",
    "a\u00a0b\u3000c", "\x00\x1b\x7f", "    indent", "I'm  here.   Ok", "ﬁ Ⅳ １２", "مرحبا", "\ufeffbom",
]


@functools.cache
def tokenizer():
    texts = ["".join(next(iter(source.documents(0.1)))[1])[:20_000] for source in builtin_sources(0, 100_000)]
    return Tokenizer.train([*texts, "def f(x):\n    return  x\n        # ü 日本\n" * 50], 400)


@functools.cache
def small(rope_theta=500.0, norm_eps=1e-4, n_layers=3):
    """The model; its parameters are drawn so that logits are of the order of 1."""
    config = ModelConfig(dim=48, n_layers=n_layers, n_heads=4, vocab_size=400, multiple_of=8, norm_eps=norm_eps, rope_theta=rope_theta,
                         max_seq_len=64)
    rng = np.random.default_rng(5)
    params = {
        name: (rng.uniform(0.5, 1.5, shape) if len(shape) == 1 else rng.standard_normal(shape) / shape[1] ** 0.5).astype(np.float32)
        for name, shape in param_shapes(config).items()
    }
    params["tok_embeddings"] *= 7                                # rows of unit variance
    return Model(config, params, tokenizer().model)


def same(model, other, dtype=np.float32):
    """True if every parameter is the same to the bit, after rounding those of the first to dtype."""
    return list(other.tensors) == list(model.tensors) and all(
        np.array_equal(np.asarray(model.tensors[name]).astype(dtype).astype(np.float32), other.tensors[name]) for name in model.tensors
    )
