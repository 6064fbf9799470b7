"""The optimiser: AdamW, clipping by the global norm, warm-up and cosine. NumPy only."""

from .adamw import adamw_step
from .clip import clip_grad_norm
from .schedule import learning_rate

__all__ = ["adamw_step", "clip_grad_norm", "learning_rate"]
