"""Cross-entropy in Triton: the pair, and the in-place form."""
import math

import numpy as np
import pytest
import torch
from kernel_check import DEVICE, DTYPES, LAYOUTS, check_pair, close, rounded, tensors

from kernels import reference
from kernels.cross_entropy import MAX_BLOCK, cross_entropy, cross_entropy_, cross_entropy_backward, cross_entropy_forward, inverse_count
from minillama.nn import IGNORE
from minillama.nn import cross_entropy_backward as numpy_backward
from minillama.nn import cross_entropy_forward as numpy_forward

SHAPES = [(1, 1, 1), (2, 3, 31), (5, 1, 32), (1, 67, 9), (3, 2, 1000), (2, 3, 1027), (1, 2, 4100)]
LARGE = [(1, 2, 16384), (1, 2, 16389), (1, 9, 32000), (1, 2, MAX_BLOCK + 16), (1, 3, 50257)]  # around each limit; 9: rows in a loop


def arrays(shape, size=3.0, seed=0):
    """Logits, and targets of which the second is not scored, the others being random, the first and the last id."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, shape[-1], shape[:-1])
    targets.flat[-1], targets.flat[0] = 0, shape[-1] - 1
    if targets.size > 2:
        targets.flat[1] = IGNORE
    return [rng.standard_normal(shape) * size, targets]


def check_both(inputs, dtype, **options):
    check_pair((cross_entropy_forward, cross_entropy_backward), (numpy_forward, numpy_backward), reference.cross_entropy_forward,
               inputs, dtype, ["dlogits"], **options)


def check_in_place(inputs, dtype):
    """cross_entropy_ against the twin: its gradient for dout = 1, and nats that add up to its loss."""
    logits, targets = tensors(inputs, dtype)
    seen, _ = rounded(inputs, dtype)
    V = logits.shape[-1]
    true_loss, cache = numpy_forward(seen, inputs[1])
    leaf = logits.clone().requires_grad_()
    loss = reference.cross_entropy_forward(leaf, targets)
    dlogits, = torch.autograd.grad(loss, leaf)
    buffer = logits.reshape(-1, V).clone()
    inverse = inverse_count(targets.reshape(-1))
    nats = cross_entropy_(buffer, targets.reshape(-1), inverse)
    assert nats.dtype == torch.float32
    close("nats", (nats * inverse).sum(), loss, np.asarray(true_loss), dtype)
    close("dlogits", buffer.view(logits.shape), dlogits, numpy_backward(1.0, cache), dtype)
    assert not nats[targets.reshape(-1) == IGNORE].any()
    assert not buffer[targets.reshape(-1) == IGNORE].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy(shape, dtype):
    check_both(arrays(shape), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_in_place(shape, dtype):
    check_in_place(arrays(shape), dtype)


@pytest.mark.parametrize("shape", LARGE)
def test_large_vocabulary(shape):
    check_both(arrays(shape), torch.float32)
    check_in_place(arrays(shape), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_logits(dtype):
    """Of magnitude 1e4: exp would overflow, and a log-sum-exp in one float32 would be off by 1e-3. Two close ones share the row."""
    for V in (37, 5000):
        logits, targets = arrays((2, 3, V), 1e4)
        logits[..., 3] = logits[..., 5] = 3e4
        targets[0, 0] = 3
        check_both([logits, targets], dtype)
        check_in_place([logits, targets], dtype)


@pytest.mark.parametrize("V", [1, 31, 1000, MAX_BLOCK // 2 + 1])
@pytest.mark.parametrize("level", [0.0, 1e4, -1e4])
def test_equal_logits_cost_ln_V(V, level):
    logits, targets = torch.full((3, V), level, device=DEVICE), torch.tensor([0, V // 2, V - 1], device=DEVICE)
    loss, _ = cross_entropy_forward(logits, targets)
    assert loss.item() == pytest.approx(math.log(V), rel=1e-6)
    nats = cross_entropy_(logits, targets, inverse_count(targets))
    assert nats.cpu() == pytest.approx(math.log(V), rel=1e-6)


@pytest.mark.parametrize("V", [40, 6000, MAX_BLOCK // 2 + 9])
def test_logits_of_minus_infinity(V):
    """Ids that a mask has excluded, here all but the last two: probability and gradient 0, even if a whole block is excluded."""
    logits = torch.full((2, V), float("-inf"), device=DEVICE)
    logits[:, -2:] = torch.tensor([1.0, 3.0], device=DEVICE)
    targets = torch.tensor([V - 1, V - 2], device=DEVICE)
    loss, cache = cross_entropy_forward(logits, targets)
    dlogits = cross_entropy_backward(1.0, cache)
    nats = cross_entropy_(logits, targets, inverse_count(targets))
    p = 1 / (1 + math.exp(-2.0))
    assert loss.item() == pytest.approx(-(math.log(p) + math.log(1 - p)) / 2, rel=1e-6)
    assert nats.cpu().tolist() == pytest.approx([-math.log(p), -math.log(1 - p)], rel=1e-6)
    for gradient in (dlogits, logits):
        assert not gradient[:, :-2].any()
        assert gradient[:, -1].cpu().tolist() == pytest.approx([(p - 1) / 2, p / 2], rel=1e-5)


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # NumPy's, which computes the interpreter's maximum
@pytest.mark.parametrize("V", [7, MAX_BLOCK // 2 + 9])
def test_nothing_scored(V):
    """The mean of no tokens is 0 here (PyTorch: NaN), and nothing moves, whatever the logits."""
    logits = torch.full((2, V), float("nan"), device=DEVICE)
    targets = torch.full((2,), IGNORE, device=DEVICE)
    loss, cache = cross_entropy_forward(logits, targets)
    assert loss.item() == 0
    assert not cross_entropy_backward(1.0, cache).any()
    assert not cross_entropy_(logits, targets, inverse_count(targets)).any()
    assert not logits.any()


@pytest.mark.parametrize("V", [7, 5000, MAX_BLOCK // 2 + 9])
@pytest.mark.parametrize("wrong", [-2, "V", 2**30, 2**32 + 3, -2**40])
def test_wrong_target_is_noticed(V, wrong):
    """NaN for that token, so for the mean; the others are as they would be. Nothing is read there: 2**30 would crash."""
    wrong = V if wrong == "V" else wrong
    logits = torch.linspace(-1, 1, 2 * V, device=DEVICE).view(2, V)
    targets = torch.tensor([3, wrong], device=DEVICE)
    loss, cache = cross_entropy_forward(logits, targets)
    dlogits = cross_entropy_backward(1.0, cache)
    nats = cross_entropy_(logits, targets, inverse_count(targets))
    assert loss.isnan()
    assert nats.isnan().tolist() == [False, True]
    for gradient in (dlogits, logits):
        assert gradient.isnan().all(1).tolist() == [False, True]
        assert gradient[0].isfinite().all()


def test_32_bit_targets():
    logits, targets = tensors(arrays((2, 3, 40)), torch.float32)
    assert torch.equal(cross_entropy_forward(logits, targets)[0], cross_entropy_forward(logits, targets.int())[0])
    buffers = [logits.view(6, 40).clone() for _ in range(2)]
    for buffer, ids in zip(buffers, (targets, targets.int())):
        cross_entropy_(buffer, ids.view(6), inverse_count(ids.view(6)))
    assert torch.equal(*buffers)


def test_any_layout_of_the_logits():
    logits, targets = tensors(arrays((4, 6, 32)), torch.float32)
    loss, cache = cross_entropy_forward(logits, targets)
    expected = cross_entropy_backward(2.0, cache)
    for layout in LAYOUTS.values():
        other, cache = cross_entropy_forward(layout(logits), targets)
        assert torch.equal(loss, other)
        assert torch.equal(cross_entropy_backward(2.0, cache), expected)
    loss, _ = cross_entropy_forward(logits, targets.t().contiguous().t())
    assert torch.equal(loss, cross_entropy_forward(logits, targets)[0])


@pytest.mark.parametrize("V", [29, MAX_BLOCK // 2 + 9])
def test_in_place_stays_in_its_columns(V):
    """The first columns of a wider buffer: the others belong to somebody."""
    wide = torch.ones(3, V + 3, device=DEVICE)
    targets = torch.tensor([0, 5, IGNORE], device=DEVICE)
    nats = cross_entropy_(wide[:, :V], targets, inverse_count(targets))
    narrow = torch.ones(3, V, device=DEVICE)
    assert torch.equal(nats, cross_entropy_(narrow, targets, inverse_count(targets)))
    assert torch.equal(wide[:, :V], narrow)
    assert (wide[:, V:] == 1).all()


def test_in_place_scale():
    logits, targets = tensors(arrays((1, 7, 40)), torch.float32)
    once, thrice = logits[0].clone(), logits[0].clone()
    cross_entropy_(once, targets[0], torch.ones((), device=DEVICE))
    cross_entropy_(thrice, targets[0], torch.full((), 3.0, device=DEVICE))
    assert torch.allclose(once * 3, thrice, rtol=1e-6)


def test_dout_may_be_a_number_or_a_tensor():
    logits, targets = tensors(arrays((2, 3, 40)), torch.float32)
    _, cache = cross_entropy_forward(logits, targets)
    number, tensor, one = (cross_entropy_backward(dout, cache) for dout in (0.25, torch.full((), 0.25, device=DEVICE), 1))
    assert torch.equal(number, tensor)
    assert torch.allclose(number, one / 4)


def test_registered():
    """opcheck: schema, fake tensors, autograd and tracing agree with what the op does."""
    logits, targets = tensors(arrays((2, 3, 9)), torch.float32)
    torch.library.opcheck(torch.ops.minillama.cross_entropy.default, (logits.requires_grad_(), targets))


def test_compiles_in_one_graph():
    logits, targets = tensors(arrays((2, 3, 9)), torch.float32)
    logits.requires_grad_()
    eager, compiled = (torch.autograd.grad(function(logits, targets) * 3, logits)[0] for function in
                       (cross_entropy, torch.compile(cross_entropy, fullgraph=True, backend="aot_eager")))
    assert torch.allclose(eager, compiled, atol=1e-7)
    expected, = torch.autograd.grad(reference.cross_entropy_forward(logits, targets) * 3, logits)
    assert torch.allclose(eager, expected, atol=1e-6)


IDS = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize("logits, targets, sentence", [
    (torch.zeros(2, 4, dtype=torch.float64), IDS, "logits must be bfloat16, float16 or float32, got float64"),
    (torch.zeros(2, 0), IDS, r"logits must hold at least one element, got shape \(2, 0\)"),
    (torch.zeros(2, 4), IDS.float(), "targets must be int64 or int32, got float32"),
    (torch.zeros(2, 4), IDS.bool(), "targets must be int64 or int32, got bool"),
    (torch.zeros(2, 4), IDS[:1], r"targets must have shape \(2,\), got \(1,\)"),
    (torch.zeros(2, 4), IDS.to("meta"), "targets must be on .*, got meta"),
])
def test_bad_input(logits, targets, sentence):
    logits, targets = (tensor if tensor.device.type == "meta" else tensor.to(DEVICE) for tensor in (logits, targets))
    with pytest.raises(ValueError, match="cross_entropy_forward: " + sentence):
        cross_entropy_forward(logits, targets)
    with pytest.raises(ValueError, match="cross_entropy_: " + sentence):
        cross_entropy_(logits, targets, torch.ones((), device=DEVICE))


ROWS = r"logits must be \(N, V\) with contiguous rows that do not overlap, "


@pytest.mark.parametrize("logits, scale, sentence", [
    (torch.zeros(2, 3, 4), torch.ones(()), ROWS + r"got shape \(2, 3, 4\), strides \(12, 4, 1\)"),
    (torch.zeros(4, 2).t(), torch.ones(()), ROWS + r"got shape \(2, 4\), strides \(1, 2\)"),
    (torch.zeros(1, 4).expand(2, 4), torch.ones(()), ROWS + r"got shape \(2, 4\), strides \(0, 1\)"),
    (torch.zeros(2, 4), torch.ones(1), r"scale must have shape \(\), got \(1,\)"),
    (torch.zeros(2, 4), torch.ones((), dtype=torch.float16), "scale must be float32, got float16"),
    (torch.zeros(2, 4), torch.ones((), device="meta"), r"scale must be on the device of logits, .*, got meta"),
])
def test_bad_input_in_place(logits, scale, sentence):
    logits, scale = (tensor if tensor.device.type == "meta" else tensor.to(DEVICE) for tensor in (logits, scale))
    with pytest.raises(ValueError, match="cross_entropy_: " + sentence):
        cross_entropy_(logits, IDS.to(DEVICE), scale)


def test_bad_dout():
    _, cache = cross_entropy_forward(torch.zeros(2, 4, device=DEVICE), IDS.to(DEVICE))
    with pytest.raises(ValueError, match=r"cross_entropy_backward: dout must have shape \(\), got \(1,\)"):
        cross_entropy_backward(torch.ones(1, device=DEVICE), cache)
