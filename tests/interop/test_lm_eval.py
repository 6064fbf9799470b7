"""lm-eval on an exported model: the log-likelihood of every document is ours."""
import json

import numpy as np
import pytest
from interop_models import small, tokenizer
from tolerances import CLIENT_NATS

from minillama import interop
from minillama.engine.numpy_engine import NumpyEngine

pytestmark = pytest.mark.filterwarnings("ignore")
DOCUMENTS = ["Tom has 3 apples.", "a  b", "12+34=46", "naïve 😀 text\nin two lines"]
QUESTIONS = [("Tom has", ["the", "a  b", "12"], 0), ("12+34=", ["46", "7"], 1)]
TASKS = {
    "documents": """task: documents
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
""",
    "questions": """task: questions
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: " "
metric_list: [{metric: acc}]
""",
}


def ours(ids, first):
    """Sum of ln p of ids[first:], by our engine."""
    engine = NumpyEngine(small().config, params=small().tensors, threads=1)
    tokens = np.array([ids])
    targets = tokens[:, 1:].copy()
    targets[:, :first - 1] = -1
    return -engine.loss(tokens[:, :-1], targets)[0]


def test_log_likelihoods_are_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="lm-eval[hf] is not installed")
    from lm_eval.tasks import TaskManager

    interop.write(tmp_path / "model", small(), "hf")
    (tmp_path / "tasks").mkdir()
    keys = ("question", "choices", "answer")
    rows = {"documents": [{"text": text} for text in DOCUMENTS], "questions": [dict(zip(keys, row)) for row in QUESTIONS]}
    for name, text in TASKS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text.replace("FILE", str(tmp_path / f"{name}.jsonl")))

    def scores(task, add_bos_token):
        # lm-eval puts <s> before a document itself; a tokenizer that does so, too, would give it two
        model = huggingface.HFLM(str(tmp_path / "model"), dtype="float32", device="cpu", batch_size=1, add_bos_token=add_bos_token)
        result = lm_eval.simple_evaluate(model, tasks=[task], task_manager=TaskManager(include_path=str(tmp_path / "tasks")),
                                         bootstrap_iters=0, log_samples=True)
        return [[float(np.ravel(np.array(response[0], object))[0]) for response in sample["resps"]] for sample in result["samples"][task]]

    for text, (score,) in zip(DOCUMENTS, scores("documents", add_bos_token=False)):
        assert score == pytest.approx(ours(tokenizer().encode(text, bos=True), 1), abs=CLIENT_NATS)
    for (question, choices, _), found in zip(QUESTIONS, scores("questions", add_bos_token=True)):
        start = len(tokenizer().encode(question, bos=True))
        expected = [ours(tokenizer().encode(f"{question} {choice}", bos=True), start) for choice in choices]
        assert found == pytest.approx(expected, abs=CLIENT_NATS)
