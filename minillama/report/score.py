"""What `eval` does: a trained model's loss on the text that its run held out, or on another."""
import sys
from pathlib import Path

from tqdm import tqdm

from ..engine.factory import make_engine
from ..errors import InputError
from ..evaluate import evaluate, summary
from ..run.folder import check_fingerprints, holds_run, load
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
    cache = (path.parent if holds_run(path) else Path("runs")) / ".cache"
    epochs = None
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


def _fingerprints(sources):
    return {source.fingerprint() for source in sources}
