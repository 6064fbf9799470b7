"""From sources to shards, what training and evaluation both need: sources -> tokenizer -> tokens on disk."""
from tqdm import tqdm

from ..progress import phase
from .bpe import VocabularyTooLarge
from .mixture import load_shard
from .sources import builtin_sources, parse_data
from .tokenizer import Tokenizer

BUILTIN_CHARACTERS = 8_000_000  # of the built-in corpus, all sources together
TOKENIZER_CHARACTERS = 2_000_000  # the tokenizer learns from at most this much, every source by its share
STRETCH = 10_000  # characters


def make_sources(data, seed):
    """The sources of a run: the user's files, or the built-in corpus."""
    return parse_data(data) if data else builtin_sources(seed, BUILTIN_CHARACTERS)


def shares(sources):
    """Each source's share of the mix, summing to 1."""
    total = sum(source.weight for source in sources)
    return [source.weight / total for source in sources]


def _training_text(sources, val_fraction):
    """Text for the tokenizer: an even sample of every source by its share, and never from what is held out.

    A text that is longer than its share is cut into stretches, and those that are taken are spread evenly over it.
    """
    for source, share in zip(sources, shares(sources)):
        limit = int(TOKENIZER_CHARACTERS * share)
        fraction = 1.0 if source.shuffled else min(limit / source.size, 1.0)
        seen = taken = 0
        for side, chunks, _ in source.documents(val_fraction):
            for stretch in _stretches(chunks, fraction) if side == "train" else ():
                if taken <= fraction * seen:
                    yield stretch[:limit - taken]
                    taken += len(stretch)
                seen += len(stretch)
                if taken >= limit:
                    break
            if taken >= limit:
                break


def _stretches(chunks, fraction):
    """The chunks as they are if all is taken, else in stretches of at most STRETCH characters."""
    for chunk in chunks:
        yield from (chunk,) if fraction == 1 else (chunk[start:start + STRETCH] for start in range(0, len(chunk), STRETCH))


def train_tokenizer(sources, vocab_size, val_fraction, preset_vocab_size):
    """Train a run's tokenizer, never on what is held out.

    If no size was asked for (vocab_size None) and the text is too small for the preset's, it gets the largest that the text supports.
    """
    wanted = preset_vocab_size if vocab_size is None else vocab_size
    with phase("learning a vocabulary"):
        text = list(_training_text(sources, val_fraction))
        try:
            return Tokenizer.train(text, wanted)
        except VocabularyTooLarge as error:
            if vocab_size is not None:
                raise
            largest = error.largest
        tokenizer = Tokenizer.train(text, largest)
    print(f"vocabulary: the text supports {largest} pieces, not the preset's {wanted}")
    return tokenizer


def prepare_shards(sources, tokenizer, cache, val_fraction=None):
    """Tokenise every source, or find it in the cache: list of Shard. val_fraction None: everything is held out, for evaluation."""
    size = sum(source.size for source in sources)
    with tqdm(total=size, unit="B", unit_scale=True, desc="tokenising", leave=False, disable=None) as bar:
        return [load_shard(source, share, tokenizer, cache, val_fraction, bar.update) for source, share in zip(sources, shares(sources))]
