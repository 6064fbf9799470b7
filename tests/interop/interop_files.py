"""Files as other programs write and read them: opened, edited, written again. For the tests of minillama/interop."""
import json

import gguf
import numpy as np
import pytest

U32 = gguf.GGUFValueType.UINT32


def transformers():
    """The client; the tests that need it are skipped where it is not."""
    return pytest.importorskip("transformers", reason="transformers is not installed")


def opened(path, **options):
    """The model of transformers. A broken load only warns, so the report is looked at."""
    model, report = transformers().AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **options)
    assert not any(report.values()), report
    return model


def edit(path, **changes):
    """Change keys of a JSON file; None takes one out."""
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def ids(n=60, seed=0):
    return np.random.default_rng(seed).integers(3, 400, (2, n))


def rewritten(path, target, change=lambda fields: None, kind=None, drop=(), edit=lambda name, data: data):
    """A file like another, by gguf's own writer: with other keys, other tensors, or its matrices quantised."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, "llama")
    fields = {key: (field.contents(), field.types) for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    change(fields)
    for key, (value, types) in fields.items():
        if key != "general.architecture":
            writer.add_key_value(key, value, types[0], types[1] if len(types) > 1 else None)
    if fields["general.architecture"][0] != "llama":
        writer.add_key_value("general.architecture", fields["general.architecture"][0], gguf.GGUFValueType.STRING)
    for tensor in reader.tensors:
        data = edit(tensor.name, np.array(tensor.data.reshape(tensor.shape[::-1])))
        if tensor.name in drop:
            continue
        if kind and data.ndim > 1 and data.shape[-1] % 32 == 0:
            writer.add_tensor(tensor.name, gguf.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def put(key, value, kind):
    return lambda fields: fields.__setitem__(key, (value, [kind]))
