"""The output head and its cross-entropy as one op, in chunks of tokens."""
import numpy as np
import pytest
import torch
from kernel_check import DEVICE, DTYPES, LAYOUTS, check_pair, close, rounded, tensors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kernels.linear_cross_entropy as module
from kernels import reference
from kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_backward, linear_cross_entropy_forward
from minillama import nn

CHUNKS = [1, 8, 64, None]


def numpy_forward(x, weight, targets, *chunk):
    logits, linear_cache = nn.linear_forward(x, weight)
    loss, cache = nn.cross_entropy_forward(logits, targets)
    return loss, (linear_cache, cache)


def numpy_backward(dout, cache):
    return nn.linear_backward(nn.cross_entropy_backward(dout, cache[1]), cache[0])


def reference_forward(x, weight, targets, *chunk):
    """PyTorch multiplies halves on CPUs and GPUs alike, summing in float32: as fair as it gets."""
    return reference.cross_entropy_forward(reference.linear_forward(x, weight), targets)


def arrays(B, T, D, V, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, V, (B, T))
    targets.flat[-1] = V - 1
    if B * T > 2:
        targets.flat[1] = nn.IGNORE
    return [rng.standard_normal((B, T, D)), rng.standard_normal((V, D)) / np.sqrt(D) * 3, targets]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("shape", [(1, 1, 3, 1), (2, 5, 7, 31), (1, 67, 16, 32), (3, 5, 11, 1027)])
def test_linear_cross_entropy(shape, chunk, dtype):
    check_pair((linear_cross_entropy_forward, linear_cross_entropy_backward), (numpy_forward, numpy_backward), reference_forward,
               arrays(*shape), dtype, ["dx", "dweight"], [chunk])


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_dweight_is_summed_in_float32(dtype):
    """64 chunks lose nothing against one; a sum in half precision would, and the more the more chunks there are."""
    inputs = arrays(1, 128, 8, 5)
    x, weight, targets = tensors(inputs, dtype)
    _, cache = numpy_forward(*rounded(inputs, dtype))
    _, truth = numpy_backward(1.0, cache)
    errors = []
    for chunk in (128, 16, 2):
        _, cache = linear_cross_entropy_forward(x, weight, targets, chunk)
        _, dweight = linear_cross_entropy_backward(1.0, cache)
        errors.append(np.abs(dweight.double().cpu().numpy() - truth).max())
    slack = 0.01 * torch.finfo(dtype).eps * np.abs(truth).max()
    for error in errors[1:]:
        assert error <= 1.2 * errors[0] + slack


@pytest.mark.parametrize("dtype", DTYPES)
def test_dout_is_not_rounded_to_the_dtype(dtype):
    """A third, and a loss scale that float16 does not hold: PyTorch's product with a scalar tensor rounds it to the other's dtype."""
    x, weight, targets = tensors(arrays(2, 3, 5, 7), dtype)
    _, cache = linear_cross_entropy_forward(x, weight, targets)
    for dout in (1 / 3, 65536.0):
        shrunk = (cache[0] / dout if dout > 1 else cache[0], cache[1] / dout if dout > 1 else cache[1], cache[2])
        factor = torch.full((), dout, device=DEVICE)
        for gradient, one in zip(linear_cross_entropy_backward(factor, shrunk), shrunk):
            assert torch.equal(gradient, (one.double() * factor.double()).float().to(dtype))
        for number, tensor in zip(linear_cross_entropy_backward(dout, shrunk), linear_cross_entropy_backward(factor, shrunk)):
            assert torch.equal(number, tensor)


class Largest(TorchDispatchMode):
    """Bytes of the largest storage that any operation returned."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.size = max([self.size, *(leaf.untyped_storage().nbytes() for leaf in made)])
        return out


@pytest.mark.parametrize("gradients", [True, False])
def test_never_holds_all_logits(gradients):
    """Nothing is larger than a chunk of logits (its rows rounded up to 64), or the weight: N * V would be 8 times that."""
    N, V, D, chunk = 64, 128, 3, 8
    x, weight, targets = tensors(arrays(1, N, D, V), torch.float32)
    with Largest() as seen:
        _, cache = linear_cross_entropy_forward(x, weight, targets, chunk, gradients)
        if gradients:
            linear_cross_entropy_backward(1.0, cache)
    assert seen.size == chunk * V * 4
    with Largest() as seen:
        reference_forward(x, weight, targets)
    assert seen.size == N * V * 4                                # so the measure does see them


def test_chunk_follows_the_budget(monkeypatch):
    assert module._chunk(16384, 32000, 2) == 8192
    assert module._chunk(16384, 32000, 4) == 4096
    assert module._chunk(9000, 32000, 2) == 4608                 # two alike, not 8320 and 680
    assert module._chunk(100, 32000, 2) == 128                   # more than there are: forward takes what there is
    assert module._chunk(10**6, 2**28, 4) == 1
    monkeypatch.setattr(module, "LOGITS_BYTES", 4 * 31 * 4)      # 4 tokens
    x, weight, targets = tensors(arrays(2, 5, 7, 31), torch.float32)
    with Largest() as seen:
        loss, _ = linear_cross_entropy_forward(x, weight, targets)
    assert seen.size == 4 * 64 * 4
    assert torch.equal(loss, linear_cross_entropy_forward(x, weight, targets, 4)[0])


@pytest.mark.parametrize("chunk", [2, None])
def test_without_gradients(chunk):
    """Where nobody wants them: the same loss, and no cache."""
    x, weight, targets = tensors(arrays(2, 5, 7, 31), torch.float32)
    loss, cache = linear_cross_entropy_forward(x, weight, targets, chunk, gradients=False)
    assert cache is None
    assert torch.allclose(loss, linear_cross_entropy_forward(x, weight, targets, chunk)[0])


def test_gradients_only_where_wanted(monkeypatch):
    x, weight, targets = tensors(arrays(2, 5, 7, 31), torch.float32)
    real, asked = module.linear_cross_entropy_forward, []
    monkeypatch.setattr(module, "linear_cross_entropy_forward", lambda *arguments: asked.append(arguments[-1]) or real(*arguments))
    linear_cross_entropy(x, weight, targets)
    linear_cross_entropy(x, weight.clone().requires_grad_(), targets)
    linear_cross_entropy(x.clone().requires_grad_(), weight, targets)
    with torch.no_grad():
        linear_cross_entropy(x, weight.clone().requires_grad_(), targets)
    assert asked == [False, True, True, False]


def test_nothing_scored():
    x, weight, targets = tensors(arrays(2, 3, 5, 7), torch.float32)
    loss, cache = linear_cross_entropy_forward(x, weight, torch.full_like(targets, nn.IGNORE), 4)
    assert loss.item() == 0
    for gradient in linear_cross_entropy_backward(1.0, cache):
        assert not gradient.any()


def test_wrong_target_is_noticed():
    x, weight, targets = tensors(arrays(2, 3, 5, 7), torch.float32)
    targets[1, 1] = 7
    for gradients in (True, False):
        assert linear_cross_entropy_forward(x, weight, targets, 2, gradients)[0].isnan()


def test_any_layout():
    x, weight, targets = tensors(arrays(4, 6, 8, 31), torch.float32)
    expected, cache = linear_cross_entropy_forward(x, weight, targets, 5)
    gradients = linear_cross_entropy_backward(1.0, cache)
    for layout in LAYOUTS.values():
        loss, cache = linear_cross_entropy_forward(layout(x), weight.t().contiguous().t(), targets.int(), 5)
        assert torch.allclose(loss, expected)
        for gradient, other in zip(gradients, linear_cross_entropy_backward(1.0, cache)):
            assert other.is_contiguous()
            assert torch.allclose(gradient, other, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_autograd(dtype):
    """(N, D), scaled loss, weight and x leaves: what a training step does."""
    inputs = arrays(1, 10, 7, 31)
    x, weight, targets = tensors(inputs, dtype)
    x, weight = x[0].requires_grad_(), weight.requires_grad_()
    loss = linear_cross_entropy(x, weight, targets[0], 4)
    assert loss.dtype == torch.float32
    grads = torch.autograd.grad(loss / 3, (x, weight))
    _, cache = numpy_forward(*rounded(inputs, dtype))
    expected = torch.autograd.grad(reference_forward(x[None], weight, targets) / 3, (x, weight))
    for name, grad, other, truth in zip(("dx", "dweight"), grads, expected, numpy_backward(1 / 3, cache)):
        close(name, grad, other, truth.reshape(grad.shape), dtype)


def test_registered():
    """opcheck: schema, fake tensors, autograd and tracing agree with what the op does."""
    x, weight, targets = tensors(arrays(2, 3, 5, 7), torch.float32)
    for gradients in (False, True):
        torch.library.opcheck(torch.ops.minillama.linear_cross_entropy.default, (x, weight, targets, 4, gradients))
    arguments = (x.clone().requires_grad_(), weight.clone().requires_grad_(), targets, None, True)
    torch.library.opcheck(torch.ops.minillama.linear_cross_entropy.default, arguments)


def test_compiles_in_one_graph():
    x, weight, targets = tensors(arrays(2, 3, 5, 7), torch.float32)
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    results = [torch.autograd.grad(function(x, weight, targets) * 3, leaves) for function in
               (linear_cross_entropy, torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager"))]
    for eager, compiled in zip(*results):
        assert torch.allclose(eager, compiled, atol=1e-6)


IDS = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize("x, weight, targets, chunk, sentence", [
    (torch.zeros(2, 4, dtype=torch.float64), torch.zeros(3, 4), IDS, None, "x must be bfloat16, float16 or float32, got float64"),
    (torch.zeros(2, 4).half(), torch.zeros(3, 4), IDS, None, r"weight must have the dtype of x, float16, got float32"),
    (torch.zeros(2, 4), torch.zeros(3, 5), IDS, None, r"x must have shape \(2, 5\), got \(2, 4\)"),
    (torch.zeros(2, 4), torch.zeros(4), IDS, None, r"weight must have two axes \(vocabulary and channels\), got shape \(4,\)"),
    (torch.zeros(0, 4), torch.zeros(3, 4), IDS[:0], None, r"x must hold at least one element, got shape \(0, 4\)"),
    (torch.zeros(2, 4), torch.zeros(3, 4, device="meta"), IDS, None, r"weight must be on the device of x, .*, got meta"),
    (torch.zeros(2, 4), torch.zeros(3, 4), IDS.to("meta"), None, "targets must be on .*, got meta"),
    (torch.zeros(2, 4), torch.zeros(3, 4), IDS.float(), None, "targets must be int64 or int32, got float32"),
    (torch.zeros(2, 4), torch.zeros(3, 4), IDS[:1], None, r"targets must have shape \(2,\), got \(1,\)"),
    (torch.zeros(2, 4), torch.zeros(3, 4), IDS, 0, "chunk must be None or an integer of at least 1, got 0"),
    (torch.zeros(2, 4), torch.zeros(3, 4), IDS, 2.0, "chunk must be None or an integer of at least 1, got 2.0"),
])
def test_bad_input(x, weight, targets, chunk, sentence):
    x, weight, targets = (tensor if tensor.device.type == "meta" else tensor.to(DEVICE) for tensor in (x, weight, targets))
    with pytest.raises(ValueError, match="linear_cross_entropy_forward: " + sentence):
        linear_cross_entropy_forward(x, weight, targets, chunk)
