"""The model in PyTorch: NumPy's names, parameters, logits and gradients."""
import numpy as np
import pytest
import torch
from helpers import assert_close, batch, ignored, large_params
from tolerances import MODEL_FLOAT32

from kernels.model import Llama
from minillama import nn
from minillama.errors import InputError
from minillama.nn import param_shapes


def test_names(tiny):
    model = Llama(tiny)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes == param_shapes(tiny)
    assert model.state_dict().keys() == param_shapes(tiny).keys()


def test_fresh_parameters_are_numpys(tiny):
    params = nn.init_params(tiny)
    assert all(np.array_equal(parameter.detach().numpy(), params[name]) for name, parameter in Llama(tiny).named_parameters())


def test_model_is_numpys(tiny):
    """Logits, loss and every gradient."""
    params = large_params(tiny)
    model = Llama(tiny, params={name: torch.tensor(array) for name, array in params.items()})
    tokens, targets = batch(tiny, 3, 9)
    logits, cache = nn.model_forward(tokens, params, tiny)
    loss, loss_cache = nn.cross_entropy_forward(logits, targets)
    grads = nn.model_backward(nn.cross_entropy_backward(1.0, loss_cache), cache)
    result = model(torch.tensor(tokens), torch.tensor(targets))
    result.backward()
    assert (result.shape, result.dtype) == ((), torch.float32)
    assert result.item() == pytest.approx(float(loss), rel=MODEL_FLOAT32)
    assert_close({"logits": model(torch.tensor(tokens)).detach().numpy()}, {"logits": logits}, MODEL_FLOAT32)
    assert_close({name: parameter.grad.numpy() for name, parameter in model.named_parameters()}, grads, MODEL_FLOAT32)


def test_low_precision_stays_low(tiny):
    """bfloat16 in, bfloat16 out, with float32 tables: no op promotes."""
    model = Llama(tiny, dtype=torch.bfloat16)
    tokens, targets = map(torch.tensor, batch(tiny, 2, 9))
    assert model(tokens).dtype == torch.bfloat16
    assert model(tokens, targets).dtype == torch.float32
    assert model.tables(0, 9)[0].dtype == torch.float32


def test_no_scored_token_is_a_loss_of_0(tiny):
    model = Llama(tiny)
    loss = model(*map(torch.tensor, ignored(tiny)))
    loss.backward()
    assert loss.item() == 0
    assert all((parameter.grad == 0).all() for parameter in model.parameters())


@pytest.mark.parametrize("options", [{"kernels": "cuda"}, {"attention": "slow"}])
def test_unknown_ops(options, tiny):
    with pytest.raises(InputError, match=f"{next(iter(options))} must be one of .*, got '{next(iter(options.values()))}'"):
        Llama(tiny, **options)
