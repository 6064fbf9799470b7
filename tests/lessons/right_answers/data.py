"""Right answers to the exercises of lesson 12, written in other ways than the solutions."""
import numpy as np


def epochs_loops(weights, total_tokens, size_bytes, bytes_per_token):
    total = sum(weights)
    return [w / total * total_tokens / (b / r) for w, b, r in zip(weights, size_bytes, bytes_per_token)]


def epochs_one_line(weights, total_tokens, size_bytes, bytes_per_token):
    return weights * bytes_per_token * (total_tokens / np.dot(weights, np.ones_like(weights))) / size_bytes


def epochs_logarithms(weights, total_tokens, size_bytes, bytes_per_token):
    return np.exp(np.log(weights) - np.log(np.sum(weights)) + np.log(total_tokens) - np.log(size_bytes) + np.log(bytes_per_token))


def token_shares_loops(document_weights, document_tokens):
    products = [w * n for w, n in zip(document_weights, document_tokens)]
    return np.array([p / sum(products) for p in products])


def token_shares_dot(document_weights, document_tokens):
    return document_weights * document_tokens / np.dot(document_weights, document_tokens)


def token_shares_normalised_first(document_weights, document_tokens):
    documents = document_weights / document_weights.sum()
    return documents * (document_tokens / (documents @ document_tokens))


def row_sources_loops(weights, rows, seed, step):
    offset, total, sources = np.random.default_rng([seed, step]).random(), sum(weights), []
    for row in range(rows):
        point, source = (row + offset) / rows * total, 0
        while point >= sum(weights[:source + 1]):
            source += 1
        sources.append(source)
    return sources


def row_sources_compare(weights, rows, seed, step):
    rng = np.random.default_rng([seed, step])
    points = rng.random() / rows + np.linspace(0, 1, rows, endpoint=False)
    return (points[:, None] >= np.cumsum(weights / np.sum(weights))).sum(1)


def row_sources_counts(weights, rows, seed, step):
    offset = np.random.default_rng([seed, step]).random()
    ends = np.ceil(np.cumsum(weights) / np.sum(weights) * rows - offset).astype(int)  # points before the end of each source
    ends[-1] = rows
    return np.repeat(np.arange(len(weights)), np.diff(ends, prepend=0))


def windows_lists(tokens, seq_len, held_out):
    border = tokens - held_out
    train = [start for start in range(tokens) if start + seq_len + 1 <= border]
    val = [start for start in range(border, tokens) if (start - border) % seq_len == 0 and start + seq_len + 1 <= tokens]
    return train, val


def windows_counts(tokens, seq_len, held_out):
    rows = (held_out - 1) // seq_len
    return np.arange(tokens - held_out - seq_len), tokens - held_out + seq_len * np.arange(rows)


def windows_masks(tokens, seq_len, held_out):
    place, border = np.arange(tokens), tokens - held_out
    last = place + seq_len  # of the row's tokens
    return np.flatnonzero(last < border), np.flatnonzero((place >= border) & (last < tokens) & ((place - border) % seq_len == 0))


RIGHT = {
    "12.epochs": [epochs_loops, epochs_one_line, epochs_logarithms],
    "12.token_shares": [token_shares_loops, token_shares_dot, token_shares_normalised_first],
    "12.row_sources": [row_sources_loops, row_sources_compare, row_sources_counts],
    "12.windows": [windows_lists, windows_counts, windows_masks],
}
