"""Lesson 12: what the learner writes, and the ways it goes wrong. Equation numbers are the lesson's."""
import numpy as np

from ..check import Exercise, Mistake


def epochs(weights, total_tokens, size_bytes, bytes_per_token):
    """How often each source is read (n,), from the weights of the mix, the tokens of the training, and each source's size (n,)."""
    shares = weights / weights.sum()
    read = shares * total_tokens
    there = size_bytes / bytes_per_token
    return read / there


def token_shares(document_weights, document_tokens):
    """Each source's share of the tokens (n,), if documents are drawn with these weights; document_tokens: mean length (n,)."""
    tokens = document_weights * document_tokens
    shares = tokens / tokens.sum()
    return shares


def row_sources(weights, rows, seed, step):
    """The source of each row (rows,) int, by systematic sampling; the offset is np.random.default_rng([seed, step]).random()."""
    offset = np.random.default_rng([seed, step]).random()
    points = (offset + np.arange(rows)) / rows
    ends = np.cumsum(weights) / np.sum(weights)
    sources = np.searchsorted(ends, points, side="right")
    return sources


def windows(tokens, seq_len, held_out):
    """Where a row may begin, two int arrays, in a stream of so many tokens whose last `held_out` are kept back for validation.

    train_starts: all places for training. val_starts: rows that score every held-out token but the first once, as far as whole rows go.
    """
    border = tokens - held_out
    train_starts = np.arange(0, border - seq_len)
    val_starts = np.arange(border, tokens - seq_len, seq_len)
    return train_starts, val_starts


def _epochs_inputs(rng):
    return rng.uniform(5, 40, 6), 1.4e12, rng.uniform(5e10, 3e12, 6), rng.uniform(2.5, 4.5, 6)


def _shares_inputs(rng):
    return rng.uniform(0.1, 0.9, 5), rng.uniform(20, 400, 5)


def _rows_inputs(rng):
    return rng.uniform(0.1, 0.2, 9), 61, int(rng.integers(5, 90)), int(rng.integers(100, 900))


def _windows_inputs(rng):
    seq_len, rest = int(rng.integers(7, 10)), int(rng.integers(2))  # rest: 1, then 0, so that an end one off shows in one of the draws
    return int(rng.integers(150, 160)), seq_len, 6 * seq_len + rest


EXERCISES = {
    "12.epochs": Exercise(
        epochs, ("epochs",), _epochs_inputs,
        (
            Mistake("not-normalised", "weights / weights.sum()", "weights + 0.0", "the weights are taken for shares; a share is a weight divided by the sum of all (12.1)"),
            Mistake("share-missing", "shares * total_tokens", "total_tokens", "the share is left out (12.2): then every source would be the only one"),
            Mistake("bytes-for-tokens", "size_bytes / bytes_per_token", "size_bytes", "the size on disk stands where the number of tokens must (12.2): a token has several bytes"),
            Mistake("bytes-multiplied", "size_bytes / bytes_per_token", "size_bytes * bytes_per_token",
                    "bytes are multiplied by bytes per token; divided, they give tokens (12.2)"),
            Mistake("one-rate-for-all", "size_bytes / bytes_per_token", "size_bytes / bytes_per_token.mean()",
                    "all sources are given the same bytes per token; each has its own (12.2)"),
            Mistake("upside-down", "read / there", "there / read", "the fraction is upside down (12.2): a small source is read more often, not less"),
            Mistake("share-by-size", "weights / weights.sum()", "size_bytes / bytes_per_token / (size_bytes / bytes_per_token).sum()",
                    "the share is that of the source in all the text there is: then all are read equally often, and (12.1) is the recipe's share"),
            Mistake("of-all-text", "read / there", "read / there.sum()", "what is read of a source is divided by the text of all sources; (12.2) divides by its own"),
            Mistake("equal-shares", "weights / weights.sum()", "np.ones(len(weights)) / len(weights)", "all sources have the same share, whatever the weights are (12.1)"),
            Mistake("largest-is-one", "weights / weights.sum()", "weights / weights.max()", "the weights are divided by the largest of them, and not by their sum (12.1)"),
        ),
    ),
    "12.token_shares": Exercise(
        token_shares, ("shares",), _shares_inputs,
        (
            Mistake("documents-for-tokens", "document_weights * document_tokens", "document_weights", "the documents are counted, and not their tokens (12.3): a long document counts more"),
            Mistake("divided", "document_weights * document_tokens", "document_weights / document_tokens",
                    "weights are divided by the lengths: that turns token shares into document shares; (12.3) is the other way"),
            Mistake("not-normalised", "tokens / tokens.sum()", "tokens + 0.0", "what comes out is not divided by its sum (12.3): shares sum to 1"),
            Mistake("lengths-alone", "document_weights * document_tokens", "document_tokens", "the weights are left out (12.3): these are the shares if every source gave one document"),
            Mistake("sum-of-weights", "tokens / tokens.sum()", "tokens / document_weights.sum()",
                    "tokens are divided by the sum of the weights: that is tokens per document of the mix, and no share (12.3)"),
            Mistake("two-sums", "tokens / tokens.sum()", "tokens / (document_weights.sum() * document_tokens.sum())",
                    "two sums are multiplied where the sum of the products is meant (12.3)"),
            Mistake("largest-is-one", "tokens / tokens.sum()", "tokens / tokens.max()", "tokens are divided by the largest of them, and not by their sum (12.3)"),
        ),
    ),
    "12.row_sources": Exercise(
        row_sources, ("sources",), _rows_inputs,
        (
            Mistake("seed-alone", "default_rng([seed, step])", "default_rng(seed)", "the random numbers do not depend on the step: every step draws the same batch (12.4)"),
            Mistake("step-alone", "default_rng([seed, step])", "default_rng(step)", "the random numbers do not depend on the seed: every run sees the same batches (12.4)"),
            Mistake("offset-missing", "offset + np.arange(rows)", "0.0 + np.arange(rows)",
                    "the offset is left out of (12.4): every batch then has the same rows, and a small share can be missed for ever"),
            Mistake("offset-per-row", ".random()", ".random(rows)", "every row has an offset of its own; (12.4) has one for the whole batch"),
            Mistake("independent", ("default_rng([seed, step]).random()", "(offset + np.arange(rows)) / rows"), ("default_rng([seed, step])", "offset.random(rows)"),
                    "every row draws its source by itself: right on average, with the variance of (12.5) where (12.6) is meant"),
            Mistake("offset-too-large", "(offset + np.arange(rows)) / rows", "offset + np.arange(rows) / rows",
                    "the offset is not divided by the rows (12.4): points run past 1, where no source is"),
            Mistake("rows-minus-one", "/ rows\n", "/ (rows - 1)\n", "the steps are 1/(rows - 1) long (12.4): with the offset the last point lies past 1"),
            Mistake("not-normalised", " / np.sum(weights)", "", "the weights are not divided by their sum: the cumulative shares must end at 1 (12.4)"),
            Mistake("not-cumulated", "np.cumsum(weights)", "np.asarray(weights)", "points are compared with the shares themselves; source i lies between two cumulative shares (12.4)"),
            Mistake("exclusive", "np.cumsum(weights)", "(np.cumsum(weights) - weights)",
                    "the cumulative shares begin at 0, so every row comes out one source too far: the end of source i is p_0 + ... + p_i (12.4)"),
            Mistake("equal-shares", "np.cumsum(weights) / np.sum(weights)", "np.arange(1, len(weights) + 1) / len(weights)",
                    "all sources have the same share, whatever the weights are (12.4)"),
            Mistake("one-random-source", "(offset + np.arange(rows)) / rows", "offset + np.zeros(rows)",
                    "all rows take the same point, so a batch is of one source alone; (12.4) moves on by 1/rows"),
        ),
    ),
    "12.windows": Exercise(
        windows, ("train_starts", "val_starts"), _windows_inputs,
        (
            Mistake("train-overlaps", "border - seq_len)", "tokens - seq_len)", "training rows may begin anywhere, in the held-out text, too (12.7): then what is measured was trained on"),
            Mistake("starts-only", "border - seq_len)", "border)", "rows begin before the border, but the last ones reach over it into the held-out text (12.7)"),
            Mistake("target-over-the-border", "border - seq_len)", "border - seq_len + 1)",
                    "the last row's last target is a held-out token: a row is seq_len + 1 tokens long (12.7)"),
            Mistake("last-place-lost", "border - seq_len)", "border - seq_len - 1)", "the last place is left out: its row ends with the last training token (12.7)"),
            Mistake("train-not-overlapping", "np.arange(0, border - seq_len)", "np.arange(0, border - seq_len, seq_len)",
                    "training rows begin at every seq_len-th place alone; they may begin anywhere (12.7)"),
            Mistake("val-everywhere", "tokens - seq_len, seq_len)", "tokens - seq_len)",
                    "validation rows begin at every place, so that most tokens are scored seq_len times; they are seq_len apart (12.8)"),
            Mistake("gap", "tokens - seq_len, seq_len)", "tokens - seq_len, seq_len + 1)",
                    "validation rows are seq_len + 1 apart, and between two of them a token is never scored: neighbours share one token (12.8)"),
            Mistake("val-too-early", "np.arange(border, tokens", "np.arange(border - 1, tokens", "validation begins with the last training token (12.8): it was trained on"),
            Mistake("row-too-long", "tokens - seq_len, seq_len)", "tokens, seq_len)", "the last row begins where no whole row is left: it runs past the end (12.8)"),
            Mistake("last-row-lost", "tokens - seq_len, seq_len)", "tokens - seq_len - 1, seq_len)",
                    "the last whole row is left out where it ends with the last token of all (12.8)"),
            Mistake("last-target-missing", "tokens - seq_len, seq_len)", "tokens - seq_len + 1, seq_len)",
                    "the last row has no target for its last input where the stream ends: a row is seq_len + 1 tokens long (12.8)"),
            Mistake("share-for-count", "tokens - held_out", "held_out", "the first `held_out` tokens are trained on and the others held out; it is the other way round (12.7)"),
        ),
    ),
}
