"""Several models on the same held-out texts, each text in a column of its own: what is learned from one, and helps with another.

A column is a source that one of the runs was trained on, by content. Of one that several were trained on, the part is scored that
all of them held out: what a smaller val_fraction holds out is a part of what a larger one does (see text/sources.py).
Losses are in nats/token while all models have the same tokenizer; otherwise in bits/byte, the only unit in which they can be compared.
"""
import math

from tqdm import tqdm

from ..engine.factory import make_engine
from ..errors import InputError
from ..evaluate import mean_loss
from ..run.folder import check_fingerprints, load
from ..text.mixture import load_shard
from ..text.prepare import make_sources
from .score import cache_of


def score_matrix(paths, engine, threads=None):
    """Score every model on every text.

    Args:
        paths:  list of Path    runs, checkpoints or models; what was not trained here is a row and has no column
        engine: EngineConfig

    Returns:
        {"unit": "nats/token" | "bits/byte", "models": {PATH: {TEXT: {"loss", "floor", "excess", "own"}}}}; floor and excess are None
        where unknown, own says whether the run was trained on the text

    Raises:
        InputError: a path twice, no text at all, or something is broken
    """
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise InputError(f"the models of a matrix must differ, got {twice} twice")
    models = {path: load(path) for path in paths}
    texts = _texts(models)
    names = _names(texts)
    same = len({trained.tokenizer.fingerprint for trained in models.values()}) == 1
    scores = {}
    with tqdm(total=len(models) * len(texts), unit="texts", leave=False, disable=None) as bar:
        for path, trained in models.items():
            recipe, tokenizer = trained.config.train, trained.tokenizer
            computer = make_engine(engine, trained.config.model, params=trained.params, threads=threads)
            row = scores[str(path)] = {}
            for key, (source, fraction, owners) in texts.items():
                held_out = load_shard(source, 1.0, tokenizer, cache_of(path), fraction).val
                loss = mean_loss(computer, held_out.tokens, recipe.seq_len, tokenizer.bos_id, recipe.batch_size)
                unit = 1 if same else held_out.scored / held_out.bytes / math.log(2)
                floor = None if held_out.floor is None else held_out.floor * unit
                excess = None if floor is None else loss * unit - floor
                row[names[key]] = {"loss": loss * unit, "floor": floor, "excess": excess, "own": path in owners}
                bar.update()
    return {"unit": "nats/token" if same else "bits/byte", "models": scores}


def _texts(models):
    """What the runs were trained on: {fingerprint: (source, the smallest val_fraction, the runs)}."""
    texts = {}
    for path, trained in models.items():
        if trained.has_text:
            recipe = trained.config.train
            sources = make_sources(trained.config.data, recipe.seed)
            check_fingerprints(path, trained.tokenizer, sources)
            for source in sources:
                key = source.fingerprint()
                known, fraction, owners = texts.get(key, (source, recipe.val_fraction, ()))
                texts[key] = known, min(fraction, recipe.val_fraction), (*owners, path)
    if not texts:
        raise InputError(f"none of {', '.join(map(str, models))} was trained here, so there is no held-out text: eval MODEL --data FILE")
    return texts


def _names(texts):
    """What the columns are called: the source's name, with the run's if several texts have the same."""
    names = [source.name for source, _, _ in texts.values()]
    return {key: source.name if names.count(source.name) == 1 else f"{source.name} of {owners[0]}"
            for key, (source, _, owners) in texts.items()}


def format_matrix(result):
    """`score_matrix` for people: the distance to the floor where it is known, else the loss."""
    models = result["models"]
    floors = {text: cell["floor"] for text, cell in next(iter(models.values())).items()}
    heads = [f"{text} " if floor is None else f"{text} + " for text, floor in floors.items()]  # the last character stands over the stars
    table = [("model", heads)]
    for name, row in models.items():
        table.append((name, [f"{cell['loss'] if cell['excess'] is None else cell['excess']:.4f}{'*' if cell['own'] else ' '}"
                             for cell in row.values()]))
    widths = [max(len(head), 9) for head in heads]
    first = max(len(name) for name, _ in table)
    rows = ["  ".join([f"{name:<{first}}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths))]).rstrip() for name, cells in table]
    above = "; + above its floor" if any(floor is not None for floor in floors.values()) else ""
    return "\n".join([*rows, f"{result['unit']} on held-out text{above}; * a text of this run's own"])
