"""The one training loop: the same for every engine, every preset and every text.

    for every step:  lr = schedule(step)      batch = mixture(seed, step)      engine.train_step(batch, lr)

Self-supervised: predict the next token, nothing else [LLaMA §2.1-2.3]. The schedule and the batches are pure functions of the
step, so a run that was stopped and resumed ends in the same bits as one that never was.
Lesson: lessons/13_train.ipynb.
"""
import math
import signal
import time

from .engine.factory import make_engine
from .engine.protocol import Diverged
from .errors import InputError
from .evaluate import evaluate, summary
from .generate import Sampling, generate
from .optim import learning_rate
from .run import checkpoint
from .run.metrics import Metrics
from .run.open import open_run
from .world import ALONE

SAMPLE_TOKENS = 200
LAST_EVALUATION = 50  # times as many tokens as the others: all there is of a text of some megabytes
INTERRUPTED = 130  # exit status after Ctrl-C: 128 + SIGINT


class Watcher:
    """Told what happens in a training; this one says nothing. report/console.py prints and draws."""

    def begins(self, run, engine):
        """Run and engine are ready."""

    def scores(self, tokens, total):
        """So many held-out tokens more are scored, of about `total`."""

    def scored(self, record, result):
        """All are: the line of metrics.jsonl, and the `summary`."""

    def sampled(self, text):
        """The model has written a text."""

    def stepped(self, record):
        """A step is done: its line of metrics.jsonl."""

    def saved(self, run, records):
        """A checkpoint is on the disk, which vouches for these lines of metrics.jsonl."""

    def ends(self, run, step, complete):
        """Nothing more happens: the run is complete, or was interrupted after `step`."""


def train(request, watcher, world=ALONE):
    """Train a run to its last step, or until Ctrl-C.

    Args:
        request: TrainRequest    see run/open.py
        watcher: Watcher
        world:   the processes that train it together, each of which calls this; see world.py

    Returns:
        exit status: 0, or 130 if it was interrupted

    Raises:
        InputError: bad input; Diverged, with the last good checkpoint in place
        OSError: a disk that is full or read-only, likewise
    """
    with open_run(request, world) as run:
        config = run.config
        engine = make_engine(request.engine, config.model, config.train, None, config.threads, config.batch_splits, world)
        if run.state:
            engine.load_state(run.state)
        watcher.begins(run, engine)
        complete = _loop(run, engine, watcher, world)
        watcher.ends(run, engine.step, complete)
    return 0 if complete else INTERRUPTED


def _loop(run, engine, watcher, world):
    """From the engine's step to the run's last one: True if it got there, False if it was interrupted."""
    config = run.config
    samples_at = {config.start_step + math.ceil(config.train.steps * share) for share in (0.1, 0.3, 0.6, 1)}
    with Metrics(run.out / "metrics.jsonl", engine.step, world.rank == 0) as metrics, StopOnSignal(world) as stop:
        if is_unscored(metrics.records, config):                 # an evaluation was interrupted
            metrics.amend(score(engine, run, metrics.records[-1], watcher, stop))
        stopping = stop.asked()
        while engine.step < config.last_step and not stopping:
            record = train_step(engine, run.mixture, config.train, config.start_step)
            if _is_due(engine.step, config.train.eval_every, config):
                record |= score(engine, run, record, watcher, stop)
            metrics.append(record)
            if engine.step in samples_at:
                watcher.sampled(sample(engine, run.tokenizer, config.train.seed))
            watcher.stepped(record)
            stopping = stop.asked()
            if _is_due(engine.step, config.train.save_every, config) or stopping:
                world.first(lambda: save(engine, run, metrics), engine)
                watcher.saved(run, metrics.records)
        return engine.step >= config.last_step and not is_unscored(metrics.records, config)


def train_step(engine, mixture, recipe, start_step=0):
    """One update: the schedule and the batch of the engine's next step, counted from `start_step`. Returns its line of metrics.jsonl."""
    started = time.perf_counter()
    step, rows = engine.step + 1 - start_step, recipe.batch_size * recipe.grad_accum_steps
    lr = learning_rate(step, recipe.lr, recipe.steps, recipe.warmup_steps, recipe.final_lr_fraction)
    tokens, targets = mixture.batch(step, rows)
    cuts = range(0, rows, recipe.batch_size)
    result = engine.train_step([(tokens[i:i + recipe.batch_size], targets[i:i + recipe.batch_size]) for i in cuts], lr)
    speed = round(tokens.size / (time.perf_counter() - started))
    return {"step": engine.step, "loss": result.loss, "lr": lr, "grad_norm": result.grad_norm, "tokens": step * tokens.size,
            "tokens_per_s": speed}


def _is_due(step, every, config):
    return step % every == 0 or step == config.last_step


def is_unscored(records, config):
    """True if the last line lacks the evaluation that belongs to its step."""
    return bool(records) and _is_due(records[-1]["step"], config.train.eval_every, config) and "val_loss" not in records[-1]


def score(engine, run, record, watcher, stop):
    """Evaluate on the held-out text: what it adds to the line of its step, nothing if it was interrupted."""
    recipe, mixture = run.config.train, run.mixture

    limit = recipe.eval_tokens * (LAST_EVALUATION if engine.step == run.config.last_step else 1)
    total = sum(min(shard.val.scored, limit) for shard in mixture.shards)

    def progress(tokens):
        watcher.scores(tokens, total)
        stop.check()

    epochs = mixture.epochs((engine.step - run.config.start_step) * run.config.tokens_per_step)
    try:
        rows = recipe.batch_size * stop.world.size               # each process has as many as in training
        scores = evaluate(engine, mixture.shards, recipe.seq_len, mixture.bos_id, rows, limit, epochs, progress)
    except Stopped:
        return {}
    result = summary(mixture.shards, scores)
    if not math.isfinite(result["loss"]):
        raise Diverged(f"training diverged at step {engine.step}: the loss on the held-out text is {result['loss']}")
    numbers = {"val_loss": result["loss"], "val_bits_per_byte": result["bits_per_byte"], "floor": result["floor"]}
    watcher.scored(record | numbers, result)
    return numbers


def sample(engine, tokenizer, seed):
    """A short text by the model, from nothing but <s>. Raises Diverged where it can write none."""
    try:
        ids = list(generate(engine, [tokenizer.bos_id], SAMPLE_TOKENS, tokenizer.eos_id, Sampling(seed=seed)))
    except InputError as error:
        raise Diverged(f"training diverged at step {engine.step}: {error}") from None
    return tokenizer.decode(ids)


def save(engine, run, metrics):
    """Write a checkpoint, and before it all lines that it vouches for. Raises Diverged for values that no checkpoint should hold."""
    metrics.sync()
    try:
        checkpoint.save(run.out / "checkpoints", engine.state(), run.config.model, run.tokenizer.model, run.config.train.keep)
    except checkpoint.NotFinite as broken:
        raise Diverged(f"training diverged at step {engine.step}: {broken} is not finite; the last good checkpoint is kept") from None


class Stopped(Exception):
    """Ctrl-C was pressed while something ran that can be given up."""


class StopOnSignal:
    """Ctrl-C (and SIGTERM) ask the loop to stop after the step it is in; a second Ctrl-C does not wait. Several processes stop together,
    whichever of them was asked."""

    def __init__(self, world=ALONE):
        self.world, self._asked = world, False

    def __enter__(self):
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number, frame):
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def asked(self):
        """True if any process was asked to stop."""
        return self.world.any(self._asked)

    def check(self):
        """Raise Stopped if any process was asked to stop."""
        if self.asked():
            raise Stopped

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)
