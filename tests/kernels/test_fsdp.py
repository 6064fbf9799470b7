"""The model with its parameters sharded over two processes (PyTorch's FSDP2, on the processor) gives the gradients of one process."""
import pytest
import torch
from sharded import CONFIG, RANKS, batch, one_rank
from tolerances import MODEL_FLOAT32

from kernels.model import KERNELS, Llama


@pytest.mark.parametrize("kernels", KERNELS)
def test_two_shards_are_one_model(kernels, tmp_path):
    if kernels == "triton":
        pytest.importorskip("triton", reason="triton is not installed: it exists for Linux alone")
        if torch.cuda.is_available():
            pytest.skip("the shards are on the processor, where kernels run only if they are interpreted")
    torch.multiprocessing.spawn(one_rank, (tmp_path, kernels), RANKS)
    gathered = torch.load(tmp_path / "grads.pt")
    whole = Llama(CONFIG)
    whole(*batch()).backward()
    for name, parameter in whole.named_parameters():
        largest = parameter.grad.abs().max()
        assert (gathered[name] - parameter.grad).abs().max() <= MODEL_FLOAT32 * largest, name
