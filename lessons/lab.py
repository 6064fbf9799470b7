"""The one bench for experiments: a tiny LLaMA in NumPy on the built-in text, arms by seeds, on all cores; and the one plot style.

    arms = {"RMSNorm": {}, "no norm": {"patch": {"minillama.nn.block.rmsnorm_forward": "lessons.museum.no_norm_forward", ...}}}
    results = lab.run(arms, seeds=3, steps=300)
    results["no norm"].final                     # excess of every seed, nats/token

An arm is what differs from the usual: settings of ModelConfig or TrainConfig by their own names, and

    patch        functions by their dotted name, that other functions replace while it trains
    mix          the sources it trains on, with their shares: {"facts": 0.9, "sums": 0.1}; usually all three
    characters   of built-in text to train on
    start        another arm, trained first from the same seed: this one goes on from its parameters, with a schedule of its own
    moments      with start: "carried" goes on from its AdamW moments, too, usually "fresh"

The steps are `minillama.train.train_step` on `NumpyEngine`, so no experiment has a training loop of its own.

Results are **excess**: loss on held-out text less that text's exact entropy floor, nats/token: what there was to learn and was not.
A seed means the same first weights and the same batches in every arm; arms on as much text see the same held-out part, all of it.

What was measured once is kept in lessons/.cache, under a hash of the code and of the settings, so that building a lesson again is quick.
"""
import contextlib
import functools
import hashlib
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from unittest import mock

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")               # for the worker processes, whose matrices are small

import numpy as np

from minillama.config import ModelConfig, TrainConfig
from minillama.engine.numpy_engine import NumpyEngine
from minillama.engine.protocol import Diverged
from minillama.evaluate import evaluate, summary
from minillama.machine import default_threads
from minillama.text.corpus import SHARES
from minillama.text.mixture import Mixture
from minillama.text.prepare import prepare_shards, train_tokenizer
from minillama.text.sources import builtin_sources
from minillama.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
CHARACTERS, VOCAB, TEXT_SEED, HELD_OUT = 600_000, 400, 0, 15_000  # of the built-in text, in characters
OTHER = ("patch", "mix", "characters", "start", "moments")       # what an arm may set that is in no configuration
MODEL = dict(dim=32, n_layers=2, n_heads=4, multiple_of=8, max_seq_len=64)
TRAIN = dict(steps=300, batch_size=8, seq_len=64, lr=1e-2, warmup_steps=20, embedding_std=0.5)
EVALUATIONS = 6  # in a run, evenly spread
FAST_SHARE = 6  # in fast mode a run has this many times fewer steps


class Result(NamedTuple):
    """One arm. Where a run diverged, its excess is infinite from there on.

    steps:   (evaluations,) int                       updates done when it was measured
    excess:  (seeds, evaluations) float               nats/token above the floor, on all it trains on
    sources: dict name -> (seeds, evaluations) float  the same on each source of the built-in text, trained on or not
    norms:   (seeds, steps) float                     gradient norm before clipping
    params:  list of dict                             what every seed ended with
    """

    steps: np.ndarray
    excess: np.ndarray
    sources: dict
    norms: np.ndarray
    params: list

    @property
    def final(self):
        """Excess at the end, one number per seed."""
        return self.excess[:, -1]

    @property
    def mean(self):
        return float(self.final.mean())

    @property
    def band(self):
        """The lowest and the highest seed."""
        return float(self.final.min()), float(self.final.max())


# ---- the text and the model ----
@functools.cache
def text(characters=CHARACTERS):
    """(tokenizer, shards) of the bench's text: so much of the built-in corpus, made once and kept. The tokenizer is always the same."""
    usual = builtin_sources(TEXT_SEED, CHARACTERS)
    key = hashlib.sha256(" ".join([*(s.fingerprint() for s in usual), str((VOCAB, HELD_OUT, _code()))]).encode()).hexdigest()[:16]
    path = cache() / f"tokenizer-{key}.model"
    if path.exists():
        tokenizer = Tokenizer.load(path)
    else:
        tokenizer = train_tokenizer(usual, VOCAB, HELD_OUT / CHARACTERS, VOCAB)
        _write(path, lambda part: tokenizer.save(part))
    sources = usual if characters == CHARACTERS else builtin_sources(TEXT_SEED, characters)
    return tokenizer, prepare_shards(sources, tokenizer, cache() / "text", HELD_OUT / characters)


def mixed(shards, mix):
    """The shards of a mix, each with its share: dict name -> weight."""
    total = sum(mix.values())
    return [shard._replace(share=mix[shard.name] / total) for shard in shards if shard.name in mix]


def configs(arm, seed=0, steps=None):
    """(ModelConfig, TrainConfig) of an arm."""
    settings = {key: value for key, value in arm.items() if key not in OTHER}
    model = MODEL | {key: settings.pop(key) for key in list(settings) if key in ModelConfig.__dataclass_fields__}
    train = TRAIN | ({"steps": steps} if steps else {}) | settings | {"seed": seed}
    return ModelConfig(vocab_size=text()[0].vocab_size, **model), TrainConfig(**train)


@contextlib.contextmanager
def patched(patch):
    """Functions replaced, both by dotted name: {"minillama.nn.block.rmsnorm_forward": "lessons.museum.no_norm_forward"}."""
    with contextlib.ExitStack() as stack:
        for target, replacement in (patch or {}).items():
            stack.enter_context(mock.patch(target, pkgutil.resolve_name(replacement)))
        yield


def excess(engine, shards=None):
    """Loss of an engine on all of the held-out text, or on that of some shards, less the floor: nats/token."""
    tokenizer, usual = text()
    shards = usual if shards is None else shards
    result = summary(shards, evaluate(engine, shards, engine.config.max_seq_len, tokenizer.bos_id))
    value = result["loss"] - result["floor"]
    return value if np.isfinite(value) else np.inf


def excess_of(params, patch=None, **arm):
    """Excess of parameters that are there already, read by a model in which functions are replaced."""
    with patched(patch):
        return excess(NumpyEngine(configs(arm)[0], params=params, threads=1))


# ---- the bench ----
def run(arms, seeds=3, steps=None, evaluations=EVALUATIONS):
    """Train every arm from every seed.

    Args:
        arms:  dict name -> dict    see above
        seeds: int                  0 .. seeds - 1
        steps: int                  updates of an arm that does not say; in fast mode (LESSONS_FAST=1) all make fewer

    Returns:
        dict name -> Result
    """
    from . import FAST

    steps = steps or TRAIN["steps"]
    if FAST:
        arms = {name: _shortened(arm, steps, evaluations) for name, arm in arms.items()}
    text()                                                       # before several processes want it at once
    jobs = {(name, seed): _job(arm, seed, steps, evaluations) for name, arm in arms.items() for seed in range(seeds)}
    _measure(jobs.values())
    results = {}
    for name in arms:
        runs = [_read(jobs[name, seed]) for seed in range(seeds)]
        sources = {source: np.array([r.sources[source] for r in runs]) for source in SHARES}
        excesses, norms = (np.array([getattr(r, field) for r in runs]) for field in ("excess", "norms"))
        results[name] = Result(runs[0].steps, excesses, sources, norms, [r.params for r in runs])
    return results


def _shortened(arm, steps, evaluations):
    """An arm for fast mode."""
    fewer = max(arm.get("steps", steps) // FAST_SHARE, evaluations)
    return arm | {"steps": fewer} | ({"start": _shortened(arm["start"], steps, 1)} if "start" in arm else {})


class _Job(NamedTuple):
    spec: str  # JSON
    path: str
    start: "_Job | None" = None  # to be done before


def _job(arm, seed, steps, evaluations):
    start = _job(arm["start"], seed, steps, evaluations) if "start" in arm else None
    spec = json.dumps({"arm": arm, "seed": seed, "steps": steps, "evaluations": evaluations}, sort_keys=True)
    modules = sorted({name.rpartition(".")[0] for name in (arm.get("patch") or {}).values()})
    code = " ".join([_code(), *(_file_hash(importlib.import_module(m).__file__) for m in modules if m.startswith("lessons"))])
    key = hashlib.sha256(f"{spec} {VOCAB} {CHARACTERS} {MODEL} {TRAIN} {code} {start and start.path}".encode()).hexdigest()[:20]
    return _Job(spec, str(cache() / f"run-{key}.npz"), start)


def _measure(jobs):
    """Do the jobs whose results are not there, on all cores; those that others start from first."""
    missing = [job for job in dict.fromkeys(jobs) if not Path(job.path).exists()]
    if not missing:
        return
    _measure([job.start for job in missing if job.start])
    bar = _progress(len(missing))
    workers = min(default_threads(), len(missing))
    if workers == 1:
        for job in missing:
            _do(job)
            bar.update()
    else:
        waiting = iter(missing)                                  # next() of a list's iterator is safe among threads
        with ThreadPoolExecutor(workers) as threads:
            list(threads.map(lambda _: _work_off(waiting, bar), range(workers)))
    bar.close()


def _work_off(waiting, bar):
    """One process of this file, which is told a job a line: a notebook, a script and a test can all start it, on every system."""
    command = [sys.executable, "-m", "lessons.lab"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as worker:
        for job in waiting:
            worker.stdin.write(json.dumps(job) + "\n")
            worker.stdin.flush()
            if worker.stdout.readline() != "done\n":
                raise RuntimeError(f"a training run failed:\n{worker.stderr.read()}")
            bar.update()
        worker.stdin.close()


def _progress(total):
    from tqdm import tqdm

    return tqdm(total=total, unit="run", desc="training", leave=False, file=sys.stderr)


class _Run(NamedTuple):
    """One arm from one seed, as it is kept. The moments of AdamW are `m` and `v`."""

    steps: np.ndarray
    excess: np.ndarray
    sources: dict
    norms: np.ndarray
    params: dict
    m: dict
    v: dict


def _do(job):
    """One run: train, measure, keep."""
    from threadpoolctl import threadpool_limits

    from minillama.train import train_step

    spec = json.loads(job.spec)
    arm = spec["arm"]
    model, recipe = configs(arm, spec["seed"], spec["steps"])
    tokenizer, shards = text(arm.get("characters", CHARACTERS))
    trained_on = mixed(shards, arm.get("mix", SHARES))
    marks = np.linspace(0, recipe.steps, spec["evaluations"] + 1).round().astype(int)[1:]
    excesses, sources = np.full(len(marks), np.inf), {name: np.full(len(marks), np.inf) for name in SHARES}
    norms = np.full(recipe.steps, np.nan)
    with threadpool_limits(1), patched(arm.get("patch")), np.errstate(all="ignore"):
        engine, mixture = NumpyEngine(model, recipe, threads=1), Mixture(trained_on, recipe.seq_len, recipe.seed, tokenizer.bos_id)
        start = _begin(engine, job, arm.get("moments", "fresh"))
        try:
            for step in range(1, recipe.steps + 1):
                norms[step - 1] = train_step(engine, mixture, recipe, start)["grad_norm"]
                if step in marks:
                    i = list(marks).index(step)
                    for shard in shards:
                        sources[shard.name][i] = excess(engine, mixed([shard], {shard.name: 1}))
                    excesses[i] = sum(shard.share * sources[shard.name][i] for shard in trained_on)
        except Diverged:
            pass
    state = engine.state()
    run = _Run(marks, excesses, sources, norms, state["params"], state["m"], state["v"])
    _write(Path(job.path), lambda part: _save(part, run))


def _begin(engine, job, moments):
    """Go on from the run that a job starts from, if it does: the step that its schedule begins at."""
    if job.start is None:
        return 0
    run = _read(job.start)
    fresh = {name: np.zeros_like(array) for name, array in run.params.items()}
    m, v, step = {"fresh": (fresh, fresh, 0), "carried": (run.m, run.v, len(run.norms))}[moments]
    engine.load_state({"step": step, "params": run.params, "m": m, "v": v})
    return step


def _save(path, run):
    """A run as one .npz: an array a field, and "field name" for those that have names."""
    arrays = {}
    for field, value in run._asdict().items():
        arrays |= {f"{field} {name}": array for name, array in value.items()} if isinstance(value, dict) else {field: value}
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def _read(job):
    with np.load(job.path) as kept:
        named = {field: {} for field in _Run._fields}
        for key in kept.files:
            field, _, name = key.partition(" ")
            if name:
                named[field][name] = kept[key]
            else:
                named[field] = kept[key]
    return _Run(**named)


def _write(path, save):
    """Whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    save(part)
    os.replace(part, path)


@functools.cache
def cache():
    """The folder of what was measured: lessons/.cache, or one of the system where that cannot be written."""
    folder = ROOT / "lessons" / ".cache"
    try:
        folder.mkdir(exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="minillama-lessons-"))


@functools.cache
def _file_hash(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@functools.cache
def _code():
    """A hash of everything a run computes with."""
    files = [ROOT / "minillama" / name for name in ("config.py", "evaluate.py", "train.py")]
    files += sorted(f for folder in ("nn", "optim", "text", "engine") for f in (ROOT / "minillama" / folder).glob("*.py"))
    return hashlib.sha256(" ".join([np.__version__, *map(_file_hash, [*files, Path(__file__)])]).encode()).hexdigest()


# ---- the one plot style ----
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe & Ito: for every kind of colour vision
STYLE = {
    "figure.figsize": (7.2, 3.8), "figure.dpi": 100, "figure.constrained_layout.use": True,
    "font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.8,
    "legend.frameon": False, "legend.fontsize": 9, "svg.hashsalt": "minillama", "image.cmap": "viridis",
}


@functools.cache
def pyplot():
    """matplotlib.pyplot, in the style of the lessons."""
    import matplotlib.pyplot as plt
    from cycler import cycler

    plt.rcParams.update(STYLE | {"axes.prop_cycle": cycler(color=COLOURS)})
    return plt


def plot_curves(axes, results, colours=None):
    """Excess over the steps: the mean of the seeds, and the band from the lowest to the highest."""
    for k, (name, result) in enumerate(results.items()):
        colour = colours[name] if colours else COLOURS[k % len(COLOURS)]
        axes.plot(result.steps, result.excess.mean(0), color=colour, label=f"{name}: {_text(result.mean)}")
        axes.fill_between(result.steps, result.excess.min(0), result.excess.max(0), color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="step", ylabel="excess (nats/token)", yscale="log")


def plot_dots(axes, results, colours=None):
    """The last excess of every arm: a dot for each seed, a bar for their mean."""
    names = list(results)
    for row, name in enumerate(names):
        colour = (colours or {}).get(name, COLOURS[0])
        final = results[name].final
        axes.plot(final, [row] * len(final), "o", color=colour, alpha=0.55, markersize=5, markeredgewidth=0)
        axes.plot([final.mean()] * 2, [row - 0.3, row + 0.3], color=colour)
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="excess at the end (nats/token)", ylim=(len(names) - 0.5, -0.5))
    axes.grid(axis="y", visible=False)


def table(results):
    """The results as text: mean, and the lowest and the highest seed."""
    width = max(map(len, results))
    for name, result in results.items():
        low, high = result.band
        print(f"{name:<{width}}  {_text(result.mean):>8}   ({_text(low)} to {_text(high)})")


def _text(value):
    return f"{value:.3f}" if np.isfinite(value) else "diverged"


if __name__ == "__main__":                                       # a worker of _work_off
    for line in sys.stdin:
        spec, path, start = json.loads(line)
        _do(_Job(spec, path, start and _Job(*start)))
        print("done", flush=True)
