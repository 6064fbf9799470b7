"""The run that lesson 13 reads: the log, the milestones and the weights of a real training, committed in lessons/run.

    python -m minillama train --steps 5000 --eval-every 100 --save-every 100 --keep 50 --out runs/lesson-13
    python -m lessons.real_run runs/lesson-13 [other runs, of other seeds]

The second command makes lessons/run:

    metrics.jsonl      every tenth line of the run's own
    milestones.json    at some steps, on the held-out text and on documents that the model wrote: see `milestone`
    baselines.json     losses of models that count, and what the runs ended with: see `baselines` and `ends`
    model/             the last weights in bfloat16, a Hugging Face directory: `generate lessons/run/model` talks to it
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from minillama.engine.numpy_engine import NumpyEngine
from minillama.errors import InputError
from minillama.evaluate import evaluate
from minillama.files import write_json
from minillama.generate import Sampling, next_token
from minillama.run import folder
from minillama.run.metrics import read_metrics
from minillama.text import corpus
from minillama.text.prepare import make_sources, prepare_shards

HERE = Path(__file__).resolve().parent / "run"
COMMAND = ["train", "--steps", "5000", "--eval-every", "100"]    # of the run, as far as its numbers depend on it
MILESTONES = (0, 100, 500, 1000, 3000, 5000)
WRITTEN, TOKENS = 500, 20_000  # documents that the model writes at a milestone; held-out tokens scored of each source
EVERY = 10  # lines of the log
PLAIN = Sampling()  # from the probabilities as they are
FRESH = 2026  # the seed of documents that no run was trained on


class Forgiving(corpus.Reader):
    """Reads a text that keeps to the grammar but contradicts itself: what memory should have known is counted in `contradictions`, and
    it reads on as if the right word stood there."""

    def __init__(self, text):
        super().__init__(text)
        self.contradictions = 0

    def pick(self, lead, options, among=(), weights=()):
        if not among:
            return super().pick(lead, options, (), weights)
        found = super().pick(lead, among)
        self.contradictions += found not in options
        return found if found in options else options[0]


def verdict(text):
    """What a document is: "true", as the grammar could have written it; "forgetful", right words that contradict what was said before;
    or "broken"."""
    for source in corpus.SOURCES.values():
        pen = Forgiving(text)
        try:
            source(pen)
        except InputError:
            continue
        if pen.at == len(text):
            return "forgetful" if pen.contradictions else "true"
    return "broken"


def documents(engine, tokenizer, n, seed=0, sampling=PLAIN):
    """n documents that a model writes from nothing but <s>, all at the same time: a list of texts. Each row draws by itself."""
    draws = [np.random.default_rng([seed, row]) for row in range(n)]
    cache, ids = engine.new_cache(n), np.full((n, 1), tokenizer.bos_id)
    while ids.shape[1] < engine.config.max_seq_len and not (ids == tokenizer.eos_id).any(1).all():
        logits = engine.decode(ids[:, -1:], cache)[:, -1]
        ids = np.column_stack([ids, [next_token(row, rng, sampling) for row, rng in zip(logits, draws)]])
    ended = [row[1:].tolist() for row in ids]
    return [tokenizer.decode(row[:row.index(tokenizer.eos_id)] if tokenizer.eos_id in row else row) for row in ended]


def document_excess(engine, tokenizer, source, n=WRITTEN):
    """What n fresh documents of a source cost a model that sees nothing before them, less their exact information: nats/document."""
    nats = 0.0
    for index in range(n):
        document = corpus.document(source, FRESH, index)
        ids = np.array([[tokenizer.bos_id, *tokenizer.encode(document.text), tokenizer.eos_id]])
        nats += engine.loss(ids[:, :-1], ids[:, 1:])[0] - document.bits * np.log(2)
    return nats / n


def milestone(step, engine, tokenizer, shards):
    """What a model can do.

    Returns:
        {"step", "loss": {source: nats/token}, "floor": {source: nats/token}, "document_excess": {source: nats/document, see there},
        "verdicts": {verdict: documents}, "samples": three texts}
    """
    scores = evaluate(engine, shards, engine.config.max_seq_len, tokenizer.bos_id, limit=TOKENS)
    written = documents(engine, tokenizer, WRITTEN)
    verdicts = [verdict(text) for text in written]
    return {
        "step": step,
        "loss": {name: score.loss for name, score in scores.items()},
        "floor": {name: score.floor for name, score in scores.items()},
        "document_excess": {name: document_excess(engine, tokenizer, name) for name in corpus.SOURCES},
        "verdicts": {name: verdicts.count(name) for name in ("true", "forgetful", "broken")},
        "samples": written[:3],
    }


def baselines(shards, vocab_size, bos_id):
    """Losses on the held-out text of models that know nothing, and that count: dict of nats/token. Counts begin at one half."""
    pairs = sum(shard.share / len(shard.train.tokens) * _pairs(shard.train.tokens, vocab_size, bos_id) for shard in shards)
    pairs *= sum(len(shard.train.tokens) for shard in shards)
    single = pairs.sum(0) + 0.5
    tables = {"uniform": np.ones_like(pairs), "unigram": np.tile(single, (vocab_size, 1)), "bigram": pairs + 0.5}
    held_out = sum(shard.share / shard.val.scored * _pairs(shard.val.tokens, vocab_size, bos_id) for shard in shards)
    return {name: float(-(held_out * np.log(table / table.sum(1, keepdims=True))).sum()) for name, table in tables.items()}


def _pairs(stream, vocab_size, bos_id):
    """(V, V) how often a token follows another; what begins a document follows nothing."""
    before, after = np.asarray(stream[:-1], np.int64), np.asarray(stream[1:], np.int64)
    flat = (before * vocab_size + after)[after != bos_id]
    return np.bincount(flat, minlength=vocab_size**2).reshape(vocab_size, vocab_size).astype(float)


def ends(run):
    """What a run ended with: {"seed", "loss", "floor"}."""
    record = folder.load_records(run)[-1]
    return {"seed": folder.read_config(run).train.seed, "loss": record["val_loss"], "floor": record["floor"]}


def make(run, others=(), out=HERE):
    """lessons/run, from the folder of a run that kept its checkpoints; `others` are runs of other seeds."""
    trained = folder.load(run)
    config, tokenizer = trained.config, trained.tokenizer
    shards = prepare_shards(make_sources(config.data, config.train.seed), tokenizer, run.parent / ".cache", config.train.val_fraction)
    milestones = []
    for step in MILESTONES:
        params = folder.load(run / "checkpoints" / f"step-{step:06}").params if step else None
        engine = NumpyEngine(config.model, config.train, params=params)
        milestones.append(milestone(step, engine, tokenizer, shards))
        print(step, milestones[-1]["verdicts"], ascii(milestones[-1]["samples"][0])[:80])
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    out.mkdir(exist_ok=True)
    (out / "metrics.jsonl").write_text("".join(lines[EVERY - 1::EVERY]), encoding="utf-8")
    write_json(out / "milestones.json", milestones)
    counted = baselines(shards, tokenizer.vocab_size, tokenizer.bos_id)
    write_json(out / "baselines.json", counted | {"ends": [ends(run), *map(ends, others)]})
    shutil.rmtree(out / "model", ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=out) as part:
        folder.export_model(run, "hf", "bf16", Path(part) / "model")
        (Path(part) / "model").rename(out / "model")


# ---- what the lesson reads ----
def log(run=HERE):
    """The lines of a metrics.jsonl: (all lines, those with an evaluation), each a dict name -> array."""
    records = read_metrics(Path(run) / "metrics.jsonl")
    evaluated = [record for record in records if "val_loss" in record]
    return tuple({name: np.array([r[name] for r in lines]) for name in lines[0]} for lines in (records, evaluated))


def read(name):
    """milestones or baselines."""
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def model(path=HERE / "model"):
    """(NumpyEngine, tokenizer) of a trained model: the committed one, or a run of your own."""
    trained = folder.load(Path(path))
    return NumpyEngine(trained.config.model, params=trained.params, threads=1), trained.tokenizer


def train():
    """Train the run again, under runs/, with progress: the validation loss it ends with."""
    out = folder.free_name(HERE.parents[1] / "runs" / "lesson-13")
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}  # all cores
    subprocess.run([sys.executable, "-m", "minillama", *COMMAND, "--out", str(out)], cwd=HERE.parents[1], env=environment, check=True)
    return ends(out)["loss"]


if __name__ == "__main__":
    make(*map(Path, sys.argv[1:2]), others=list(map(Path, sys.argv[2:])))
