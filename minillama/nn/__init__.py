"""The model: one op pair per file, NumPy and the standard library only. The contract is in `minillama.__doc__`."""

from .attention import attention_backward, attention_forward
from .block import block_backward, block_forward
from .cross_entropy import IGNORE, cross_entropy_backward, cross_entropy_forward
from .embedding import embedding_backward, embedding_forward
from .flash import flash_attention_backward, flash_attention_forward
from .linear import linear_backward, linear_forward
from .model import count_params, fresh_params, init_params, model_backward, model_forward, param_shapes
from .rmsnorm import rmsnorm_backward, rmsnorm_forward
from .rope import rope_backward, rope_forward, rope_tables
from .swiglu import swiglu_backward, swiglu_forward

__all__ = [
    "IGNORE",
    "attention_backward", "attention_forward",
    "block_backward", "block_forward",
    "count_params",
    "cross_entropy_backward", "cross_entropy_forward",
    "embedding_backward", "embedding_forward",
    "flash_attention_backward", "flash_attention_forward",
    "fresh_params",
    "init_params",
    "linear_backward", "linear_forward",
    "model_backward", "model_forward",
    "param_shapes",
    "rmsnorm_backward", "rmsnorm_forward",
    "rope_backward", "rope_forward", "rope_tables",
    "swiglu_backward", "swiglu_forward",
]
