"""Models whose query heads share key and value heads: read with a copy of the shared head for each, which is the same function."""
import json

import numpy as np
import pytest
import torch
from interop_files import U32, edit, ids, opened, put, rewritten
from interop_models import small
from safetensors.numpy import load_file, save_file
from tolerances import CLIENT_LOGITS

from minillama import interop
from minillama.interop import llama2c
from minillama.interop.model import KV
from minillama.nn import model_forward

KEPT = [0, 2]  # the key and value heads of the 4 that the file has; query heads 0 and 1 share the first, 2 and 3 the second


def shared(rows, heads=4):
    """The rows of a key or value matrix that stay."""
    return np.ascontiguousarray(rows.reshape(heads, -1, rows.shape[-1])[KEPT].reshape(-1, rows.shape[-1]))


def expected(name):
    tensor = small(10000.0, 1e-5).tensors[name]
    return np.repeat(shared(tensor).reshape(2, -1, 48), 2, 0).reshape(48, 48) if name.endswith(KV) else tensor


def write_hf(path):
    interop.write(path, small(10000.0, 1e-5), "hf")
    tensors = load_file(path / "model.safetensors")
    tensors |= {name: shared(tensors[name]) for name in tensors if "k_proj" in name or "v_proj" in name}
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    edit(path / "config.json", num_key_value_heads=2)


def write_gguf(path):
    interop.write(path.with_name("plain.gguf"), small(10000.0, 1e-5), "gguf")
    rewritten(path.with_name("plain.gguf"), path, put("llama.attention.head_count_kv", 2, U32),
              edit=lambda name, data: shared(data) if "attn_k." in name or "attn_v." in name else data)


def write_meta(path, parts=1):
    """In two parts, each has one of the two heads."""
    interop.write(path, small(10000.0, 1e-5), "meta")
    state = torch.load(path / "consolidated.00.pth", weights_only=True)
    state |= {name: torch.from_numpy(shared(state[name].numpy())) for name in state if ".wk." in name or ".wv." in name}
    for part in range(parts):
        cut = {}
        for name, tensor in state.items():
            axis = 1 if any(key in name for key in ("tok_embeddings", ".wo.", ".w2.")) else 0
            cut[name] = tensor if tensor.ndim == 1 else tensor.chunk(parts, axis)[part].clone()
        torch.save(cut, path / f"consolidated.{part:02d}.pth")
    params = json.loads((path / "params.json").read_text())
    (path / "params.json").write_text(json.dumps(params | {"n_kv_heads": 2}))


def write_llama2c(path):
    interop.write(path, small(10000.0, 1e-5), "llama2c")
    config = small().config
    plain = (path / "model.bin").read_bytes()
    tables = np.zeros(config.max_seq_len * config.head_dim, np.float32)
    tensors = small(10000.0, 1e-5).tensors
    blocks = [tables if name is None else shared(tensors[name]) if name.endswith(KV) else tensors[name] for name in llama2c._layout(config)]
    header = np.frombuffer(plain[:28], np.int32).copy()
    header[4] = 2
    (path / "model.bin").write_bytes(header.tobytes() + b"".join(block.tobytes() for block in blocks))


WRITERS = {
    "hf": write_hf, "model.gguf": write_gguf, "llama2c": write_llama2c,
    "meta": write_meta, "meta in parts": lambda path: write_meta(path, 2),
}


@pytest.mark.parametrize("name", WRITERS)
def test_shared_heads_are_copied(name, tmp_path):
    WRITERS[name](tmp_path / name)
    model = interop.read(tmp_path / name)
    assert "its 2 key and value heads copied to 4" in model.about
    for parameter in small().tensors:
        assert np.array_equal(model.tensors[parameter], expected(parameter)), parameter


def test_transformers_computes_the_same(tmp_path):
    write_hf(tmp_path / "hf")
    model = interop.read(tmp_path / "hf")
    client = opened(tmp_path / "hf")
    assert client.config.num_key_value_heads == 2
    tokens = ids()
    logits, _ = model_forward(tokens, dict(model.tensors), model.config)
    theirs = client(torch.from_numpy(tokens)).logits.detach().numpy()
    assert np.abs(logits - theirs).max() <= CLIENT_LOGITS
