"""One layer and the whole model on the kernels, with the backward written by hand."""
import numpy as np
import pytest
import torch
from kernel_check import DEVICE, DTYPES, check_pair, close, tensors

from kernels import reference
from kernels.block import block, block_backward, block_forward, merged
from kernels.model import Llama
from minillama import nn
from minillama.config import ModelConfig
from minillama.nn.model import BLOCK_NAMES

CONFIG = ModelConfig(dim=24, n_layers=2, n_heads=3, vocab_size=37, multiple_of=10, norm_eps=1e-2, max_seq_len=80)
GRADIENTS = [f"d{name}" for name in ("x", *BLOCK_NAMES)]


def arrays(config, B, T, seed=0):
    """x and the 9 weights of a layer, scaled so that everything is of order 1."""
    rng = np.random.default_rng(seed)
    shapes = {name: nn.param_shapes(config)[f"layers.0.{name}"] for name in BLOCK_NAMES}
    return [rng.standard_normal((B, T, config.dim)), *(rng.standard_normal(shape) / np.sqrt(shape[-1]) for shape in shapes.values())]


def pairs(config, T, attention="triton"):
    """The three implementations as functions of x and the 9 weights, for check_pair."""
    cos, sin = nn.rope_tables(T, config.head_dim)
    tables = [torch.from_numpy(table).to(DEVICE) for table in (cos, sin)]

    def named(weights):
        return dict(zip(BLOCK_NAMES, weights, strict=True))

    def in_order(dx, grads):
        return dx, *(grads[name] for name in BLOCK_NAMES)

    return (
        (lambda x, *weights: block_forward(x, named(weights), *tables, config, attention),
         lambda dout, cache: in_order(*block_backward(dout, cache))),
        (lambda x, *weights: nn.block_forward(x, named(weights), cos.astype(float), sin.astype(float), config),
         lambda dout, cache: in_order(*nn.block_backward(dout, cache))),
        lambda x, *weights: reference.block_forward(x, named(weights), *tables, config),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("B, T", [(1, 1), (2, 7), (1, 65)])
def test_block(B, T, dtype):
    check_pair(*pairs(CONFIG, T), arrays(CONFIG, B, T), dtype, GRADIENTS)


@pytest.mark.parametrize("attention", ["flash", pytest.param("cudnn", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", DTYPES[1:] if DEVICE.type == "cuda" else DTYPES[:1])  # on CUDA both take halves only
def test_pytorchs_attention_in_its_place(attention, dtype):
    check_pair(*pairs(CONFIG, 65, attention), arrays(CONFIG, 2, 65), dtype, GRADIENTS)


@pytest.mark.parametrize("dtype", DTYPES[1:] if DEVICE.type == "cuda" else DTYPES[:1])
def test_a_single_position_is_ours(dtype):
    """cuDNN covers none, and needs a GPU besides: both directions run without it. As one node of autograd, too."""
    check_pair(*pairs(CONFIG, 1, "cudnn"), arrays(CONFIG, 2, 1), dtype, GRADIENTS)
    x, *weights = (tensor.requires_grad_() for tensor in tensors(arrays(CONFIG, 2, 1), dtype))
    cos, sin = (torch.from_numpy(table).to(DEVICE) for table in nn.rope_tables(1, CONFIG.head_dim))
    ours, theirs = (torch.autograd.grad(block(x, dict(zip(BLOCK_NAMES, weights)), cos, sin, CONFIG, attention).sum(), (x, *weights))
                    for attention in ("triton", "cudnn"))
    assert all(map(torch.equal, ours, theirs))


def test_gradient_in_any_layout():
    check_pair(*pairs(CONFIG, 5), arrays(CONFIG, 3, 5), torch.float32, GRADIENTS,
               dout=lambda dout: dout.transpose(0, 1).contiguous().transpose(0, 1))


def test_merged_copies_only_what_is_apart():
    flat = torch.arange(24.0, device=DEVICE)
    first, second, apart = flat[:12].view(4, 3), flat[12:18].view(2, 3), flat[12:18].clone().view(2, 3)
    together = merged(first, second)
    assert together.data_ptr() == first.data_ptr() and torch.equal(together, torch.cat([first, second]))
    copied = merged(first, apart)
    assert copied.data_ptr() != first.data_ptr() and torch.equal(copied, together)
    assert torch.equal(merged(second, first), torch.cat([second, first]))


def test_neighbours_in_memory_change_nothing():
    """The weights as the engine lays them out, and each on its own."""
    x, *weights = tensors(arrays(CONFIG, 2, 7), torch.float32)
    order = ("wq", "wk", "wv", "wo", "w1", "w3", "w2", "attention_norm", "ffn_norm")
    params = dict(zip(BLOCK_NAMES, weights))
    flat = torch.cat([params[name].flatten() for name in order])
    neighbours = {name: part.view_as(params[name]) for name, part in zip(order, flat.split([params[name].numel() for name in order]))}
    assert merged(*(neighbours[name] for name in ("wq", "wk", "wv"))).data_ptr() == flat.data_ptr()
    cos, sin = reference.rope_tables(7, CONFIG.head_dim)
    results = [block_forward(x, weights, cos.to(DEVICE), sin.to(DEVICE), CONFIG) for weights in (params, neighbours)]
    assert torch.equal(results[0][0], results[1][0])
    for one, other in zip(*(block_backward(x, cache)[1].values() for _, cache in results)):
        assert torch.equal(one, other)


def test_what_is_kept_for_backward():
    """6 D + 2 F elements per token and a float32 per head; autograd of the same layer keeps more than half as much again."""
    B, T = 2, 16
    x, *weights = (tensor.requires_grad_() for tensor in tensors(arrays(CONFIG, B, T), torch.float32))
    params, tables = dict(zip(BLOCK_NAMES, weights)), [table.to(DEVICE) for table in reference.rope_tables(T, CONFIG.head_dim)]

    def kept(layer):
        known = {tensor.untyped_storage().data_ptr() for tensor in (*weights, *tables)}
        storages = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = layer(x, params, *tables, CONFIG)
        del out
        return sum(storages.values()) / (B * T)

    ours = kept(block)
    assert ours == 4 * (6 * CONFIG.dim + 2 * CONFIG.hidden_dim) + 4 * CONFIG.n_heads
    assert kept(reference.block_forward) > 1.5 * ours


def test_kept_tensors_are_freed_by_backward():
    x, *weights = (tensor.requires_grad_() for tensor in tensors(arrays(CONFIG, 1, 5), torch.float32))
    tables = [table.to(DEVICE) for table in reference.rope_tables(5, CONFIG.head_dim)]
    out = block(x, dict(zip(BLOCK_NAMES, weights)), *tables, CONFIG)
    out.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        out.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES)
def test_model(dtype):
    """Logits, loss and every gradient of the whole model, against NumPy in float64 and plain PyTorch in the same dtype."""
    rng = np.random.default_rng(3)
    tokens, targets = rng.integers(0, CONFIG.vocab_size, (2, 2, 9))
    targets[0, 3:5] = nn.IGNORE
    params = {name: (rng.standard_normal(shape) / np.sqrt(shape[-1])) for name, shape in nn.param_shapes(CONFIG).items()}
    models = [Llama(CONFIG, kernels, params=dict(zip(params, tensors(params.values(), dtype)))) for kernels in ("reference", "triton")]
    seen = {name: parameter.detach().double().cpu().numpy() for name, parameter in models[0].named_parameters()}
    logits, cache = nn.model_forward(tokens, seen, CONFIG)
    loss, loss_cache = nn.cross_entropy_forward(logits, targets)
    grads = nn.model_backward(nn.cross_entropy_backward(1.0, loss_cache), cache)

    tokens, targets = (torch.from_numpy(ids).to(DEVICE) for ids in (tokens, targets))
    losses = [model(tokens, targets) for model in models]
    for value in losses:
        value.backward()
    close("logits", models[1](tokens), models[0](tokens), logits, dtype)
    close("loss", losses[1], losses[0], np.asarray(loss), dtype)
    gradients = [dict(model.named_parameters()) for model in models]
    assert list(gradients[0]) == list(gradients[1])
    for name, grad in grads.items():
        close(name, gradients[1][name].grad, gradients[0][name].grad, grad, dtype)


def test_bad_input():
    x, *weights = tensors(arrays(CONFIG, 2, 7), torch.float32)
    tables = [table.to(DEVICE) for table in reference.rope_tables(7, CONFIG.head_dim)]
    params = dict(zip(BLOCK_NAMES, weights))
    for arguments, sentence in (
        ((x[0], params, *tables, CONFIG), r"x must be \(B, T, 24\), got shape \(7, 24\)"),
        ((x[..., :23], params, *tables, CONFIG), r"x must be \(B, T, 24\), got shape \(2, 7, 23\)"),
        ((x[:, :0], params, *tables, CONFIG), r"x must hold at least one element, got shape \(2, 0, 24\)"),
        ((x[:, :5], params, *tables, CONFIG), r"cos must have shape \(5, 4\), got \(7, 4\)"),
        ((x, params | {"w3": params["w2"]}, *tables, CONFIG), r"w3 must have shape \(\d+, 24\), got \(24, \d+\)"),
        ((x.double(), params, *tables, CONFIG), "x must be bfloat16, float16 or float32, got float64"),
    ):
        with pytest.raises(ValueError, match=sentence):
            block_forward(*arguments)
