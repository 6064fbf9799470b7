"""A training step with 1.3 billion parameters, by our engine and by its peers.

All train in bfloat16 with float32 master weights and moments, clip the gradient's norm and wait for the loss after each step, on the
same random tokens. Our step is that of the engine; the step of the peers uses PyTorch's clipping and fused AdamW (`_trainer`).
"""
import time
from contextlib import nullcontext

import numpy as np
import torch

from minillama.config import ModelConfig, TrainConfig
from minillama.nn import param_shapes

from .. import roofline
from .clock import percentiles

MODEL = ModelConfig(dim=2048, n_layers=24, n_heads=16, vocab_size=32000, multiple_of=128, max_seq_len=2048)
BATCH, WARMUP, STEPS = 8, 5, 15  # sequences of T = 2048 for all, about 80 GB; untimed and timed training steps
LR = 1e-4


def fresh_params(config, device, seed=0):
    """Random float32 NumPy arrays by name, drawn on the device: `init_params` takes long for 10^9 numbers."""
    generator = torch.Generator(device).manual_seed(seed)

    def one(shape):
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        return torch.randn(shape, generator=generator, device=device).mul_(0.02).cpu().numpy()

    return {name: one(shape) for name, shape in param_shapes(config).items()}


# ------------------------------------------------------------------------------------------ trainers: (tokens, targets) NumPy -> loss

def ours(config, device, dtype, attention="triton"):
    from ..engine import TorchEngine

    recipe = TrainConfig(seq_len=config.max_seq_len)
    engine = TorchEngine(config, recipe, fresh_params(config, device), device=str(device), kernels="triton",
                         dtype=str(dtype).removeprefix("torch."), attention=attention)
    return lambda tokens, targets: engine.train_step([(tokens, targets)], LR).loss


def _trainer(module, loss, device):
    """Train a module whose loss(tokens, targets) is a tensor: master weights, clip_grad_norm_ and fused AdamW, all of PyTorch."""
    params = list(module.parameters())
    masters = [p.detach().float().requires_grad_() for p in params]
    for master in masters:
        master.grad = torch.empty_like(master)
    groups = [{"params": [p for p in masters if (p.ndim > 1) == matrix], "weight_decay": 0.1 * matrix} for matrix in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8, fused=True)

    def step(tokens, targets):
        for p in params:
            p.grad = None
        out = loss(*(torch.from_numpy(array).to(device) for array in (tokens, targets)))
        out.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
        with torch.no_grad():
            torch._foreach_copy_([master.grad for master in masters], [p.grad for p in params])
            optimizer.step()
            torch._foreach_copy_(params, masters)
        return out.item()

    return step


def compiled(config, device, dtype):
    """The same Llama of PyTorch's ops in one compiled graph; attention by cuDNN if possible, else by flash."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from ..model import Llama

    params = {name: torch.from_numpy(array).to(device, dtype) for name, array in fresh_params(config, device).items()}
    model = Llama(config, "reference", params=params)
    model.tables(0, config.max_seq_len)                          # computed now, so that they are no part of the compiled graph
    forward = torch.compile(model, fullgraph=True, dynamic=False)
    backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

    def loss(tokens, targets):
        with sdpa_kernel(backends, set_priority=True) if device.type == "cuda" else nullcontext():
            return forward(tokens, targets)

    return _trainer(model, loss, device)


def huggingface_config(config):
    from transformers import LlamaConfig

    return LlamaConfig(vocab_size=config.vocab_size, hidden_size=config.dim, intermediate_size=config.hidden_dim,
                       num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads, num_key_value_heads=config.n_heads,
                       max_position_embeddings=config.max_seq_len, rms_norm_eps=config.norm_eps, tie_word_embeddings=False,
                       use_cache=False, attn_implementation="sdpa")


def huggingface(config, device, dtype, liger=False):
    from transformers import LlamaForCausalLM

    if liger:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()                            # changes transformers for the rest of the process: measured last
    with device:
        model = LlamaForCausalLM(huggingface_config(config)).to(dtype)
    model.train()
    return _trainer(model, lambda tokens, targets: model(input_ids=tokens, labels=tokens).loss, device)


TRAINERS = {  # provider -> (config, device, dtype) -> trainer, in the order of measuring
    "ours": ours,
    "compile": compiled,
    "ours-cudnn": lambda *arguments: ours(*arguments, attention="cudnn"),
    "huggingface": huggingface,
    "huggingface-liger": lambda *arguments: huggingface(*arguments, liger=True),
}


# ------------------------------------------------------------------------------------------------------------------------ measuring

def train(step, config, warmup=WARMUP, steps=STEPS, batch=BATCH):
    """Milliseconds of each training step, from tokens on the host to the loss on the host."""
    rows = np.random.default_rng(0).integers(0, config.vocab_size, (batch, config.max_seq_len + 1))
    tokens, targets = np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])
    times = []
    for _ in range(warmup + steps):
        started = time.perf_counter()
        step(tokens, targets)
        times.append(1e3 * (time.perf_counter() - started))
    return times[warmup:]


def measure(provider, device, gemm):
    """The fields of a line about the training step of one provider. gemm: measured FLOP/s of the model's products."""
    torch.compiler.reset()
    torch.cuda.reset_peak_memory_stats()
    ms = percentiles(train(TRAINERS[provider](MODEL, device, torch.bfloat16), MODEL))
    per_token, rate = roofline.step_flops(MODEL, MODEL.max_seq_len), BATCH * MODEL.max_seq_len / ms["p50"] * 1e3
    return {"mode": "eager", "direction": "forward+backward", "batch": BATCH, "ms": ms, "n": STEPS, "tokens_per_s": rate,
            "peak_mb": torch.cuda.max_memory_allocated() / 2**20, "mfu_of_measured": rate * per_token["causal"] / gemm,
            "mfu": {count: rate * flops / roofline.PEAK for count, flops in per_token.items()}}
