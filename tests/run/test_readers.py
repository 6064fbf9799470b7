"""Whatever stands in a TOML file or a metrics.jsonl: settings or one sentence, records or none; and what was written is read back."""
import contextlib
import dataclasses
import json
import math

import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from minillama.config import ModelConfig, TrainConfig
from minillama.errors import InputError
from minillama.run import config
from minillama.run.config import MODEL_KEYS, TOP_KEYS, TRAIN_KEYS, RunConfig, from_toml, read_toml, settle
from minillama.run.metrics import read_metrics

scalars = st.none() | st.booleans() | st.integers() | st.integers(-3, 300) | st.floats() | st.text(max_size=9) | st.sampled_from(
    ["nano", "7B", "imported", "chars", "a.txt=1", 10**40, 2**31, 1e-300])
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                      max_leaves=6)


def section(keys):
    return st.dictionaries(st.sampled_from(keys) | st.text(max_size=4), values, max_size=4)


asked = st.fixed_dictionaries({}, optional={
    **{key: values for key in TOP_KEYS if key not in ("model", "train")},
    "model": section(MODEL_KEYS) | values, "train": section(TRAIN_KEYS) | values,
})


def without_none(value):
    """TOML has no null."""
    if isinstance(value, dict):
        return {key: without_none(inner) for key, inner in value.items() if inner is not None}
    return [without_none(inner) for inner in value if inner is not None] if isinstance(value, list) else value


@settings(max_examples=300, deadline=None)
@given(asked)
def test_any_toml_is_settings_or_one_sentence(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("toml") / "a.toml"
    path.write_text(tomli_w.dumps(without_none(content)), encoding="utf-8")
    try:
        found = settle(read_toml(path))
    except InputError as error:
        assert "\n" not in str(error).replace(str(path), "") or "is not TOML" in str(error)
        return
    assert isinstance(found.model, ModelConfig) and isinstance(found.train, TrainConfig)
    assert all(math.isfinite(value) for part in (found.model, found.train) for value in dataclasses.asdict(part).values())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_settings_or_one_sentence(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("toml") / "a.toml"
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        settle(read_toml(path))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.sampled_from([None, "chars", 300]), st.integers(1, 8), st.floats(1e-6, 1.0),
       st.sampled_from([(), ("a.txt", "b=2")]), st.sampled_from([None, "runs/a"]), st.integers(0, 99))
def test_what_is_written_is_read_back(tmp_path_factory, steps, vocab_size, threads, lr, data, from_model, start):
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    model = ModelConfig(dim=16, n_layers=1, n_heads=2, vocab_size=300, max_seq_len=64)
    train = TrainConfig(steps=steps, lr=lr, seq_len=32)
    written = RunConfig("nano", model, train, threads, threads, data, vocab_size, from_model, start if from_model else 0)
    path.write_text(config.to_toml(written), encoding="utf-8")
    assert from_toml(path) == written


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=40) | st.builds(lambda value: json.dumps(value).encode(), values)
                | st.builds(lambda n: json.dumps({"step": n, "loss": 1.0, "tokens_per_s": 9}).encode(), st.integers(1, 9)), max_size=5))
def test_any_metrics_are_records_or_none(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    path.write_bytes(b"\n".join(lines))
    for record in read_metrics(path):
        assert record["step"] >= 1
        assert all(isinstance(value, int | float | None) for value in record.values())
