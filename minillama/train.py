"""The one training loop: the same for every engine, every preset and every text.

    for every step:  lr = schedule(step)      batch = mixture(seed, step)      engine.train_step(batch, lr)

Self-supervised: predict the next token, nothing else [LLaMA §2.1-2.3]. The schedule and the batches are pure functions of the
step, so a run that was stopped and resumed ends in the same bits as one that never was.
Lesson: lessons/13_train.ipynb.
"""
import dataclasses
import json
import math
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from tqdm import tqdm

from . import checkpoint, run
from .config import ModelConfig
from .engine import faster_split, make_engine, resolve_engine
from .errors import InputError
from .evaluate import evaluate, mix_floor, summary, table
from .generate import generate
from .nn import count_params
from .optim import learning_rate
from .text.bpe import VocabularyTooLarge
from .text.mixture import Mixture, load_shard
from .text.sources import builtin_sources, parse_data
from .text.tokenizer import Tokenizer

BUILTIN_CHARACTERS = 8_000_000  # of the built-in corpus, all sources together
TOKENIZER_CHARACTERS = 2_000_000  # the tokenizer learns from this much, every source by its share
SAMPLE_TOKENS = 60
LAST_EVALUATION = 50  # times as many tokens as the others: all there is of a text of some megabytes
INTERRUPTED = 130  # exit status after Ctrl-C: 128 + SIGINT


def make_sources(data, seed):
    """The sources of a run: the user's files, or the built-in corpus."""
    return parse_data(data) if data else builtin_sources(seed, BUILTIN_CHARACTERS)


def shares(sources):
    """Each source's share of the mix, summing to 1."""
    total = sum(source.weight for source in sources)
    return [source.weight / total for source in sources]


def _training_text(sources, val_fraction):
    """Text for the tokenizer: from every source by its share, and never from what is held out."""
    for source, share in zip(sources, shares(sources)):
        left = int(TOKENIZER_CHARACTERS * share)
        for part, chunks, _ in source.pieces(val_fraction):
            for chunk in chunks if part == "train" else ():
                yield chunk[:left]
                left -= len(chunk)
                if left <= 0:
                    break
            if left <= 0:
                break


def train_tokenizer(sources, vocab_size, val_fraction, preset_vocab_size):
    """Train the run's tokenizer. Where no size was asked for, a text too small for the preset's gets the largest it supports."""
    wanted = preset_vocab_size if vocab_size is None else vocab_size
    text = list(_training_text(sources, val_fraction))
    try:
        return Tokenizer.train(text, wanted)
    except VocabularyTooLarge as error:
        if vocab_size is not None:
            raise
        print(f"vocabulary: the text supports {error.largest} pieces, not the preset's {wanted}")
        return Tokenizer.train(text, error.largest)


def prepare_data(config, tokenizer, sources, cache):
    """Tokenise every source, or find it in the cache: list of Shard."""
    with tqdm(total=sum(source.size for source in sources), unit="B", unit_scale=True, desc="tokenising", leave=False, disable=None) as bar:
        return [
            load_shard(source, share, tokenizer, cache, config.train.val_fraction, bar.update)
            for source, share in zip(sources, shares(sources))
        ]


class Metrics:
    """metrics.jsonl, a line per step. Resuming drops what a checkpoint does not vouch for: later steps, and a torn last line."""

    def __init__(self, path, step):
        self.path, self.records = path, [record for record in run.read_metrics(path) if record["step"] <= step]
        checkpoint.write_text(path, "".join(json.dumps(record) + "\n" for record in self.records))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 — closed by __exit__
        self._board = open_board(path.with_name("tensorboard"), self.records)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._file.close()
        if self._board:
            self._board.close()

    def append(self, record):
        self.records.append(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._board:
            show(self._board, record)

    def sync(self):
        """Put all lines on the disk: called before a checkpoint vouches for them."""
        os.fsync(self._file.fileno())


def open_board(folder, records):
    """A writer of the same numbers for TensorBoard; None where that is not installed. Begun anew with the records that a resumed run
    keeps, so that no step stands in it twice."""
    try:
        from tensorboard.summary import Writer
    except ImportError:
        return None
    shutil.rmtree(folder, ignore_errors=True)
    board = Writer(str(folder))
    for record in records:
        show(board, record)
    return board


def show(board, record):
    """One record of metrics.jsonl as TensorBoard's curves."""
    for key, value in record.items():
        if key != "step" and value is not None:
            board.add_scalar(key, value, record["step"])


class StopOnSignal:
    """Ctrl-C (and SIGTERM) ask the loop to stop after the step it is in; a second Ctrl-C does not wait."""

    def __enter__(self):
        self.asked = False
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)


def sample(engine, tokenizer, seed):
    """A short text by the model, from nothing but <s>."""
    ids = generate(engine, [tokenizer.bos_id], SAMPLE_TOKENS, tokenizer.eos_id, seed=seed)
    return tokenizer.decode(list(ids))


def open_run(out, config, resume, engine_name="numpy", source=None):
    """Start a run's folder, or continue it.

    Args:
        config:      RunConfig          of a new run; a resumed one has its own in config.toml
        engine_name: str                not auto: the NumPy engine alone has a `split` to measure
        source:      (Model, state)     what a new run starts from, if not from fresh weights: see `run.open_source`

    Returns:
        (RunConfig, Tokenizer, list of Shard)

    Raises:
        InputError: bad data or settings; the folder holds a run already, or something else
        OSError: it cannot be written
    """
    out = Path(out)
    cache = out.parent / ".cache"
    if resume and run.holds_run(out):
        config = run.read_config(out)
        if config.preset == run.IMPORTED:
            raise InputError(f"{out} was imported and has no training to continue: train --from {out} --out DIR trains it further")
        tokenizer = run.load_tokenizer(out)
        return config, tokenizer, prepare_data(config, tokenizer, make_sources(config.data, config.train.seed), cache)
    if run.holds_run(out):
        raise InputError(f"{out} already holds a run: --resume continues it, another --out starts a new one")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already exists and is not a run: choose an --out that does not exist yet")
    if resume:
        print(f"{out} holds no run yet: starting from the beginning")
    _check_writable(out.parent)
    sources = make_sources(config.data, config.train.seed)
    if source:
        tokenizer = Tokenizer(source[0].tokenizer, config.source)
    else:
        tokenizer = train_tokenizer(sources, config.vocab_size, config.train.val_fraction, config.model["vocab_size"])
    config = dataclasses.replace(config, model=dataclasses.asdict(ModelConfig(**config.model | {"vocab_size": tokenizer.vocab_size})))
    shards = prepare_data(config, tokenizer, sources, cache)
    mixture = Mixture(shards, config.train.seq_len, config.train.seed, tokenizer.bos_id)  # refuses a text that is too short
    if config.split is None:
        split = _faster_split(config, mixture) if engine_name == "numpy" else config.threads
        config = dataclasses.replace(config, split=split)
    run.create(out, config, tokenizer, source and (source[1] or source[0]))
    return config, tokenizer, shards


def _faster_split(config, mixture):
    """Let the first batch decide how the threads share the work, and say so."""
    if config.threads == 1:
        return 1
    batch = mixture.batch(1, config.train.batch_size)
    split, seconds = faster_split(config.model_config, config.train, config.threads, batch)
    measured = ", ".join(f"{parts} x {config.threads // parts} threads {1e3 * time:.0f} ms" for parts, time in sorted(seconds.items()))
    print(f"a batch in {split} part(s): {measured} a step (--threads {config.threads} would fix it at {config.threads} parts)")
    return split


def _check_writable(folder):
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(13, "Permission denied", str(folder))


def train(out, config, resume=False, engine_name="auto", source=None, **options):
    """Train a run to its last step, or until Ctrl-C.

    Args:
        out:     Path         the run's folder
        config:  RunConfig    of a new run; ignored where `resume` finds one
        source:  (Model, state) or None    what a new run starts from: see `run.open_source`
        options: str or None  device, dtype, attention: see `make_engine`. With the engine, they are no part of the run

    Returns:
        exit status: 0, or 130 if it was interrupted

    Raises:
        InputError: bad input; Diverged, with the last good checkpoint in place
        OSError: a disk that is full or read-only, likewise
    """
    began = time.perf_counter()
    out = Path(out)
    engine_name = resolve_engine(engine_name, **options)         # refuses before anything is written
    config, tokenizer, shards = open_run(out, config, resume, engine_name, source)
    model, recipe, start = config.model_config, config.train, config.start
    last = start + recipe.steps
    mixture = Mixture(shards, recipe.seq_len, recipe.seed, tokenizer.bos_id)
    engine = make_engine(engine_name, model, recipe, threads=config.threads, split=config.split, **options)
    checkpoints = checkpoint.whole(out / "checkpoints")
    if checkpoints:
        engine.load_state(checkpoint.load(checkpoints[-1], model))
        print(f"{out}: starting from {config.source}" if engine.step == start else f"{out}: continuing after step {engine.step}")
    elif resume:
        print(f"{out}: no whole checkpoint yet, starting from the beginning")
    _introduce(out, config, engine, tokenizer, shards)

    samples_at = {start + math.ceil(recipe.steps * share) for share in (0.1, 0.3, 0.6, 1)}
    result = None
    with Metrics(out / "metrics.jsonl", engine.step) as metrics, StopOnSignal() as stop, _bar(engine.step - start, recipe.steps) as bar:
        while engine.step < last and not stop.asked:
            record = train_step(engine, mixture, recipe, start)
            step = record["step"]
            if step % recipe.eval_every == 0 or step == last:
                result = validate(engine, mixture, recipe, recipe.eval_tokens * (LAST_EVALUATION if step == last else 1), start)
                record |= {"val_loss": result["loss"], "val_bits_per_byte": result["bits_per_byte"], "floor": result["floor"]}
                bar.write(_progress(record))
            metrics.append(record)
            if step in samples_at:
                bar.write(f"  sample: {sample(engine, tokenizer, recipe.seed)!r}")
            bar.set_postfix_str(f"loss {record['loss']:.3f}, lr {record['lr']:.1e}, {record['tokens_per_s']:,} tokens/s", refresh=False)
            bar.update()
            if step % recipe.save_every == 0 or step == last or stop.asked:
                metrics.sync()
                checkpoint.save(out / "checkpoints", engine.state(), model, tokenizer.model, recipe.keep)
                _draw(out, metrics.records, model)
    if engine.step < last:
        print(f"stopped after step {engine.step} of {last}, all saved; to continue: python -m minillama train --resume --out {out}")
        return INTERRUPTED
    if result is not None:
        print(table(result))
    print(f"{out}: done in {time.perf_counter() - began:.0f} s. To talk to it: python -m minillama generate {out} --prompt ...")
    return 0


def train_step(engine, mixture, recipe, start=0):
    """One update: the schedule and the batch of the engine's next step, counted from `start`. Returns its line of metrics.jsonl."""
    started = time.perf_counter()
    step, rows = engine.step + 1 - start, recipe.batch_size * recipe.accumulate
    lr = learning_rate(step, recipe.lr, recipe.steps, recipe.warmup_steps, recipe.final_lr_fraction)
    tokens, targets = mixture.batch(step, rows)
    cuts = range(0, rows, recipe.batch_size)
    result = engine.train_step([(tokens[i:i + recipe.batch_size], targets[i:i + recipe.batch_size]) for i in cuts], lr)
    return {"step": engine.step, "loss": result.loss, "lr": lr, "grad_norm": result.grad_norm,
            "tokens": step * tokens.size, "tokens_per_s": round(tokens.size / (time.perf_counter() - started))}  # fmt: skip


def validate(engine, mixture, recipe, limit, start=0):
    """Score the held-out text, about `limit` tokens of each source: what `summary` gives."""
    epochs = mixture.epochs((engine.step - start) * recipe.batch_size * recipe.accumulate * recipe.seq_len)
    scores = evaluate(engine, mixture.shards, recipe.seq_len, mixture.bos_id, recipe.batch_size, limit, epochs)
    return summary(mixture.shards, scores)


def _bar(done, steps):
    refresh = 0.5 if sys.stdout.isatty() else 15                 # seconds; a log file needs fewer lines than an eye
    return tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True, mininterval=refresh, file=sys.stdout)


def _introduce(out, config, engine, tokenizer, shards):
    """What is about to be trained, on what, and which loss to expect."""
    model = config.model_config
    print(f"{out}: {config.preset}, {count_params(model):,} parameters, dim {model.dim}, {model.n_layers} layers, {model.n_heads} heads, "
          f"context {model.max_seq_len}; {engine.about}")  # fmt: skip
    for shard in shards:
        print(f"  {shard.name:<12} {100 * shard.share:5.1f}% of the batches, {len(shard.train.stream):>11,} training tokens, "
              f"{shard.val.scored:>9,} held out, {shard.val.bytes / shard.val.scored:.2f} bytes/token")  # fmt: skip
    floor = mix_floor(shards)
    known = "no floor is known for this text" if floor is None else f"the floor is {floor:.3f}: no model can do better on average"
    first = f"expect a loss of ln {tokenizer.vocab_size} = {math.log(tokenizer.vocab_size):.2f} nats/token at the start"
    print(f"  {first if config.source is None else 'the weights are not fresh'}; {known}")


def _progress(record):
    loss, floor = record["val_loss"], record["floor"]
    above = "" if floor is None else f", {100 * (loss / floor - 1):.1f}% above the floor of {floor:.3f}"
    return f"step {record['step']}: validation loss {loss:.4f}{above}, {record['val_bits_per_byte']:.3f} bits/byte"


def _draw(out, records, model):
    from .plot import plot_loss  # matplotlib takes a second to import

    plot_loss(records, out / "loss.png", f"{out.name}: {count_params(model):,} parameters", model.vocab_size)
