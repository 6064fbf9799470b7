"""The committed run of lesson 13, and the verdicts on what a model writes."""
import json

import numpy as np
import pytest
from helpers import SMALL, run

from lessons import real_run
from minillama.engine.numpy_engine import NumpyEngine
from minillama.run import folder
from minillama.text import corpus
from minillama.text.mixture import Shard, Stream


@pytest.mark.parametrize("source", corpus.SOURCES)
def test_what_the_grammar_writes_is_true(source):
    assert {real_run.verdict(corpus.document(source, 3, i).text) for i in range(50)} == {"true"}


@pytest.mark.parametrize(("text", "expected"), [
    ("Ann counts owls in the hut and the barn on day 512: 8+7=15, 1+2+3=6. So Ann has 65.", "true"),
    ("Ann counts owls in the hut and the barn on day 512: 8+7=16, 1+2+3=6. So Ann has 65.", "forgetful"),  # a wrong sum
    ("Ann counts owls in the hut and the barn on day 512: 8+7=15, 2+3=5. So Ann has 55.", "broken"),  # no carry
    ("Ann counts owls in the hut and the barn on day 512: 8+7=15, 1+2+3=6. So Tom has 65.", "forgetful"),
    ("Ann counts owls in the hut and the hut on day 512: 8+7=15, 1+2+3=6. So Ann has 65.", "broken"),
    ("Beldor is a land in the east. The capital of Beldor is Norvik. In 111 Norvik sold oil. In 222 Kesmar sold oil. "
     "In 333 Beldor sold oil. In 444 Beldor sold oil.", "forgetful"),  # a town that was never named
    ("Ann counts owls in the hut", "broken"),
    ("", "broken"),
])
def test_verdicts(text, expected):
    assert real_run.verdict(text) == expected


def test_baselines_by_hand():
    """Two sources, of six and three tokens: 0 begins a document and follows nothing, 1 and 2 follow. The losses, written out."""
    def stream(tokens):
        tokens = np.array(tokens, np.uint16)
        return Stream(tokens, int((tokens != 0).sum()), 1, int((tokens == 0).sum()), None)

    shards = [Shard("a", 0.75, stream([0, 1, 1, 0, 1, 1]), stream([0, 1])), Shard("b", 0.25, stream([0, 2, 2]), stream([0, 2]))]
    losses = real_run.baselines(shards, 3, 0)
    assert losses["uniform"] == pytest.approx(np.log(3))
    single = {1: 4.5 + 0.5, 2: 1.5 + 0.5}                        # 9 tokens in all: three quarters of 4 pairs in 6, times 9
    total = 6.0 + 3 * 0.5
    assert losses["unigram"] == pytest.approx(-(0.75 * np.log(single[1] / total) + 0.25 * np.log(single[2] / total)))
    after = {1: 2.25 + 0.5, 2: 0.75 + 0.5}                       # after 0
    assert losses["bigram"] == pytest.approx(-(0.75 * np.log(after[1] / 4.5) + 0.25 * np.log(after[2] / 4.5)))


def test_the_committed_run_is_what_it_says():
    steps, evaluated = real_run.log()
    assert steps["step"].tolist() == list(range(10, 5001, 10))
    assert evaluated["step"].tolist() == list(range(100, 5001, 100))
    milestones, baselines = real_run.read("milestones"), real_run.read("baselines")
    assert [m["step"] for m in milestones] == list(real_run.MILESTONES)
    assert all(sum(m["verdicts"].values()) == real_run.WRITTEN for m in milestones)
    assert baselines["ends"][0]["loss"] == evaluated["val_loss"][-1]
    engine, tokenizer = real_run.model()
    excess = real_run.document_excess(engine, tokenizer, "sums", 20)
    assert abs(excess - milestones[-1]["document_excess"]["sums"]) < 1.5  # of 20 documents, and weights rounded to bfloat16


def test_documents_draw_row_by_row():
    engine, tokenizer = real_run.model()
    some = real_run.documents(engine, tokenizer, 3, seed=5)
    assert real_run.documents(engine, tokenizer, 2, seed=5) == some[:2]
    assert len(set(some)) == 3
    assert real_run.documents(engine, tokenizer, 1, seed=6)[0] not in some


def test_it_is_made_from_a_run_s_folder(tmp_path, monkeypatch):
    """And made again over what is there."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join(corpus.document("sums", 0, i).text for i in range(400)), encoding="utf-8")
    assert run(tmp_path / "run", *SMALL, "--vocab-size", "chars", "--steps", "10", text=str(text)) == 0
    monkeypatch.setattr(real_run, "MILESTONES", (0, 10))
    monkeypatch.setattr(real_run, "WRITTEN", 3)
    for _ in range(2):
        real_run.make(tmp_path / "run", [tmp_path / "run"], tmp_path / "kept")
    assert [m["step"] for m in json.loads((tmp_path / "kept" / "milestones.json").read_text(encoding="utf-8"))] == [0, 10]
    loss = folder.load_records(tmp_path / "run")[-1]["val_loss"]
    ends = json.loads((tmp_path / "kept" / "baselines.json").read_text(encoding="utf-8"))["ends"]
    assert ends == [{"seed": 1337, "loss": loss, "floor": ends[0]["floor"]}] * 2
    assert [record["step"] for record in map(json.loads, (tmp_path / "kept" / "metrics.jsonl").read_text().splitlines())] == [10]
    assert isinstance(real_run.model(tmp_path / "kept" / "model")[0], NumpyEngine)
