"""What `eval` does: a trained model's loss on the text that its run held out, or on another; and how many tasks it solves."""
import sys
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..engine.factory import make_engine
from ..errors import InputError
from ..evaluate import evaluate, summary
from ..run.folder import check_fingerprints, holds_run, load
from ..tasks import TASKS, draw, encode, summarise
from ..text.mixture import Mixture
from ..text.prepare import make_sources, prepare_shards
from ..text.sources import parse_data


def score_run(path, data, engine, threads=None):
    """Score a run, a checkpoint or a model.

    Args:
        path:   Path
        data:   list of str | None    FILE[=WEIGHT], scored from end to end; None: what the run held out
        engine: EngineConfig

    Returns:
        dict, see `evaluate.summary`

    Raises:
        InputError: it has no text of its own, and none was given; or something is broken
    """
    trained = load(path)
    if not data and not trained.has_text:
        raise InputError(f"{path} was not trained here and has no text of its own: --data FILE says what to evaluate")
    config, recipe, tokenizer = trained.config, trained.config.train, trained.tokenizer
    cache, epochs = cache_of(path), None
    if data:
        sources = parse_data(data)
        if trained.has_text and _fingerprints(sources) & _fingerprints(make_sources(config.data, recipe.seed)):
            print("note: this run was trained on a part of this text; without --data only what was held out is scored", file=sys.stderr)
        shards = prepare_shards(sources, tokenizer, cache)
    else:
        sources = make_sources(config.data, recipe.seed)
        check_fingerprints(path, tokenizer, sources)
        shards = prepare_shards(sources, tokenizer, cache, recipe.val_fraction)
        mixture = Mixture(shards, recipe.seq_len, recipe.seed, tokenizer.bos_id)
        epochs = mixture.epochs((trained.step - config.start_step) * config.tokens_per_step)
    engine = make_engine(engine, config.model, params=trained.params, threads=threads)
    with tqdm(total=sum(shard.val.scored for shard in shards), unit="tokens", unit_scale=True, leave=False, disable=None) as bar:
        scores = evaluate(engine, shards, recipe.seq_len, tokenizer.bos_id, recipe.batch_size, epochs=epochs, progress=bar.update)
    return summary(shards, scores)


def cache_of(path):
    """Where the tokenised text of a run or a model is kept."""
    return (path.parent if holds_run(path) else Path("runs")) / ".cache"


def _fingerprints(sources):
    return {source.fingerprint() for source in sources}


def right_answers(engine, encoded, batch_size=16, progress=lambda trials: None):
    """Which trials greedy decoding gets right.

    Args:
        engine:   Engine
        encoded:  list of (ids, asked)     see `tasks.encode`
        progress: (int) -> None            called with the trials done

    Returns:
        list of bool

    Raises:
        InputError: logits that are not finite
    """
    right, rest = [], iter(encoded)
    while batch := list(islice(rest, batch_size)):
        longest = max(len(ids) for ids, _ in batch) - 1
        tokens = np.zeros((len(batch), longest), np.int64)       # padding stands behind: a causal model does not see it
        for row, (ids, _) in zip(tokens, batch):
            row[:len(ids) - 1] = ids[:-1]
        logits = engine.logits(tokens)
        if not np.isfinite(logits).all():
            raise InputError("the model's logits are not finite: its weights are broken, or its training has diverged")
        for (ids, asked), likeliest in zip(batch, logits.argmax(-1).tolist()):
            right.append(all(guess == id for guess, id, counts in zip(likeliest, ids[1:], asked[1:]) if counts))
        progress(len(batch))
    return right


def score_tasks(path, names, trials, shots, seed, engine, threads=None):
    """Ask a run, a checkpoint or a model.

    Args:
        path:   Path
        names:  list of str    of TASKS; empty: all that fit the context, with a note on the others
        trials: int            of each task
        shots:  int | None     solved examples before each question; None: the task's own number
        seed:   int            of the questions
        engine: EngineConfig

    Returns:
        {"seed", "tasks": {NAME: see `tasks.summarise`}}

    Raises:
        InputError: a question that the tokenizer cannot encode or that is longer than the context; or something is broken
    """
    trained = load(path)
    context, asked, refused = trained.config.model.max_seq_len, {}, {}
    for name in names or TASKS:
        number = TASKS[name].shots if shots is None else shots
        drawn = [draw(name, seed, index, number) for index in range(trials)]
        encoded = [encode(trial, before, trained.tokenizer) for trial, before in drawn]
        needed = max(len(ids) for ids, _ in encoded) - 1
        if needed > context:
            hint = "fewer --shots" if number else "--tasks alone asks those that fit" if names else "none of the tasks fits it"
            refused[name] = (f"{name} with {number} shot{'s' * (number != 1)} needs a context of {needed} tokens, "
                             f"and this model has {context}"), hint
            continue
        asked[name] = number, [trial for trial, _ in drawn], encoded
    if refused and (names or not asked):
        raise InputError(": ".join(next(iter(refused.values()))))
    for reason, _ in refused.values():
        print(f"note: {reason}: it is not asked", file=sys.stderr)
    engine = make_engine(engine, trained.config.model, params=trained.params, threads=threads, batch_splits=1)
    results = {}
    with tqdm(total=trials * len(asked), unit="trials", leave=False, disable=None) as bar:
        for name, (number, drawn, encoded) in asked.items():
            right = right_answers(engine, encoded, trained.config.train.batch_size, bar.update)
            results[name] = summarise(right, drawn, number)
    return {"seed": seed, "tasks": results}


def format_tasks(result):
    """`score_tasks` for people."""
    rows = [f"{'task':<10} {'right':>6}  {'95 % interval':<16} {'chance':>8} {'trials':>7} {'shots':>6}  asked"]
    for name, one in result["tasks"].items():
        interval = f"{100 * one['low']:.1f} to {100 * one['high']:.1f}%"
        chance = "<0.01%" if one["chance"] < 1e-4 else f"{100 * one['chance']:.2f}%"
        rows.append(f"{name:<10} {100 * one['accuracy']:5.1f}%  {interval:<16} {chance:>8} {one['trials']:>7} "
                    f"{one['shots']:>6}  {TASKS[name].about}")
    return "\n".join(rows)
