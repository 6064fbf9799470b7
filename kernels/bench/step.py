"""The whole model: a training step with 1.3 billion parameters, by our engine and by its peers, and the bytes each keeps for backward.

All train in bfloat16 with float32 master weights and moments, clip the gradient's norm and wait for the loss after each step, on the
same random tokens. Our step is that of the engine; the step of the peers uses PyTorch's clipping and fused AdamW (`_trainer`).
"""
import gc
import time
from contextlib import nullcontext

import numpy as np
import torch

from minillama.config import ModelConfig, TrainConfig
from minillama.nn import count_params, param_shapes

from .. import reference

MODEL = ModelConfig(dim=2048, n_layers=24, n_heads=16, vocab_size=32000, multiple_of=128, max_seq_len=2048)
SMOKE_MODEL = ModelConfig(dim=16, n_layers=1, n_heads=2, vocab_size=31, multiple_of=8, max_seq_len=8)
BATCHES = (16, 8, 4, 2, 1)
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
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=LR, betas=(0.9, 0.95), eps=1e-8, fused=True)

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


def _huggingface_config(config):
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
        model = LlamaForCausalLM(_huggingface_config(config)).to(dtype)
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

def out_of_memory(error):
    """True if this error, or an error that it was raised from, says that the device's memory is full."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def batches_that_may_fit(config, seq_len, memory, kept):
    """BATCHES without those too large for `memory` bytes: 22 per parameter, `kept` per token and layer, 12 per token and logit."""
    def need(batch):
        return 22 * count_params(config) + batch * seq_len * (config.n_layers * kept + 12 * config.vocab_size)

    return [batch for batch in BATCHES if need(batch) < 0.95 * memory] or [BATCHES[-1]]


def train(step, config, seq_len, batches, warmup, steps):
    """Time training steps at the largest batch that fits.

    Returns:
        (batch, list of ms), each from tokens on the host to the loss on the host
    """
    rng = np.random.default_rng(0)
    for batch in batches:
        rows = rng.integers(0, config.vocab_size, (batch, seq_len + 1))
        tokens, targets = np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])
        try:
            step(tokens, targets)
        except Exception as error:
            if not out_of_memory(error) or batch == batches[-1]:
                raise
            full = True
        else:
            full = False
        if not full:
            break
        gc.collect()                                             # not inside except: there the error still holds the tensors of its frames
        torch.cuda.empty_cache()
    for _ in range(warmup - 1):
        step(tokens, targets)
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        step(tokens, targets)
        times.append(1e3 * (time.perf_counter() - started))
    return batch, times


# ----------------------------------------------------------------------------------------------------------- bytes kept for backward

def _storages(tree):
    """Unique storages in nested containers of tensors: id -> bytes."""
    if isinstance(tree, torch.Tensor):
        storage = tree.untyped_storage()
        return {storage._cdata: storage.nbytes()}
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, tuple | list):
        return {}
    found = {}
    for branch in tree:
        found |= _storages(branch)
    return found


def kept_by_autograd(function, without=()):
    """Bytes of the unique storages that autograd keeps to differentiate function(), without those of the tensors in `without`."""
    saved = []

    def pack(tensor):
        saved.append(tensor)                                     # kept alive, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = function()                                         # kept alive too: it holds what only backward needs
    kept, other = _storages(saved), _storages(list(without))
    del out
    return sum(size for storage, size in kept.items() if storage not in other)


def _block_arguments(config, seq_len, device, dtype):
    """x (1, T, D), the 9 weights of a block, cos, sin."""
    shapes = {name.removeprefix("layers.0."): shape for name, shape in param_shapes(config).items() if name.startswith("layers.0.")}
    make = torch.empty if torch.device(device).type == "meta" else torch.randn
    params = {name: make(shape, dtype=dtype, device=device) for name, shape in shapes.items()}
    x = make(1, seq_len, config.dim, dtype=dtype, device=device)
    tables = (table.to(device) for table in reference.rope_tables(seq_len, config.head_dim, config.rope_theta))
    return x, params, *tables


def kept_by_ours(config, seq_len, dtype=torch.bfloat16, **_):
    """Bytes per token and layer of block_forward's cache, counted at full size on tensors without memory: nothing is computed."""
    from .. import launch
    from ..block import block_forward

    if launch.INTERPRETED and dtype == torch.bfloat16:
        dtype = torch.float16                                    # as many bytes, and the interpreter accepts it
    x, params, cos, sin = _block_arguments(config, seq_len, "meta", dtype)
    with launch.record():
        _, cache = block_forward(x, params, cos, sin, config)
    other = _storages([params, cos, sin])
    return sum(size for storage, size in _storages(cache).items() if storage not in other) / seq_len


def kept_by_reference(config, seq_len, dtype=torch.bfloat16, device="cpu"):
    """The same for the plain PyTorch block under autograd, computed on the device."""
    x, params, cos, sin = _block_arguments(config, seq_len, device, dtype)
    leaves = [tensor.requires_grad_() for tensor in (x, *params.values())]
    return kept_by_autograd(lambda: reference.block_forward(x, params, cos, sin, config), [*leaves[1:], cos, sin]) / seq_len


def kept_by_huggingface(config, seq_len, dtype=torch.bfloat16, device="cpu"):
    """The same for a layer of transformers' Llama: the difference between a model of two layers and a model of one."""
    from transformers import LlamaModel

    def model_of(n_layers):
        shape = _huggingface_config(config)
        shape.num_hidden_layers = n_layers
        with torch.device(device):
            model = LlamaModel(shape).to(dtype).train()
            tokens = torch.zeros(1, seq_len, dtype=torch.int64)
        return kept_by_autograd(lambda: model(input_ids=tokens).last_hidden_state, [*model.parameters(), *model.buffers()])

    return (model_of(2) - model_of(1)) / seq_len


ALIKE = {  # trainer -> the entry of KEPT that is closest to it
    "ours": "ours", "ours-cudnn": "ours", "compile": "eager", "huggingface": "huggingface", "huggingface-liger": "huggingface",
}
KEPT = {"ours": kept_by_ours, "eager": kept_by_reference, "huggingface": kept_by_huggingface}
FIT = [(32, 2, 8, 16), (64, 2, 8, 16), (64, 4, 8, 16), (64, 2, 64, 16), (96, 3, 16, 32), (128, 4, 32, 32), (96, 6, 32, 48)]


def fitted(kept, dtype):
    """Bytes per token and layer as a formula, from small shapes: {"D", "F", "H", "1", "TH"} -> bytes per token.

    The shapes are FIT: dim, heads, multiple_of, T. A square of attention scores that is kept would show under TH.

    Raises:
        ValueError: no such formula fits all shapes
    """
    rows, sizes = [], []
    for dim, heads, multiple, T in FIT:
        config = ModelConfig(dim=dim, n_layers=1, n_heads=heads, vocab_size=8, multiple_of=multiple, max_seq_len=T)
        rows.append((dim, config.hidden_dim, heads, 1, T * heads))
        sizes.append(kept(config, T, dtype))
    solution = np.linalg.lstsq(np.array(rows, float), np.array(sizes), rcond=None)[0]
    if np.abs(np.array(rows) @ solution - sizes).max() > 0.01 * max(sizes):
        raise ValueError(f"{kept.__name__} must be a sum of multiples of D, F, H, 1 and T H, got {sizes}")
    return dict(zip(("D", "F", "H", "1", "TH"), np.round(solution, 3).tolist()))


def at(formula, config, seq_len):
    """The value of a formula of `fitted` for a model: bytes per token and layer."""
    letters = {"D": config.dim, "F": config.hidden_dim, "H": config.n_heads, "1": 1, "TH": seq_len * config.n_heads}
    return sum(factor * letters[name] for name, factor in formula.items())
