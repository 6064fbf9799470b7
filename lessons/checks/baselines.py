"""Lesson 00: what the learner writes, and the ways it goes wrong. Equation numbers are the lesson's."""
import numpy as np

from ..check import Exercise, Mistake


def cross_entropy(logits, targets):
    """nats (N,), the surprise at each target; logits (N, V), targets (N,) int."""
    peak = logits.max(-1, keepdims=True)
    log_sum = peak[:, 0] + np.log(np.exp(logits - peak).sum(-1))
    nats = log_sum - logits[np.arange(len(targets)), targets]
    return nats


def units(nats, text):
    """loss (nats/token), perplexity and bits_per_byte of a text whose tokens cost nats (N,); text is the str they spell."""
    size = len(text.encode("utf-8"))
    loss = nats.mean()
    perplexity = np.exp(loss)
    bits_per_byte = nats.sum() / np.log(2) / size
    return loss, perplexity, bits_per_byte


def bigram(train, held_out, vocab_size, k):
    """table (V, V), its row a the probabilities of what follows a, and loss on held_out, nats/token; both texts (n,) int."""
    counts = np.zeros((vocab_size, vocab_size))
    np.add.at(counts, (train[:-1], train[1:]), 1)
    table = (counts + k) / (counts + k).sum(1, keepdims=True)
    q = table[held_out[:-1], held_out[1:]]
    loss = -np.log(q).mean()
    return table, loss


def _cross_entropy_inputs(rng):
    logits = 2 * rng.standard_normal((6, 6))                     # square: no shape gives a wrong axis away
    logits[2] += 900                                             # its exponentials are infinite
    logits[4, 3] += 900                                          # and beside this one, those of the others are 0
    return logits, np.array([1, 4, 4, 0, 2, 1])


def _units_inputs(rng):
    return rng.uniform(0.2, 3, 7), "Zoë drew 龍 and 🦁 " + "x" * int(rng.integers(3, 9))


def _bigram_inputs(rng):
    train = np.append(rng.choice(5, 40, p=[0.4, 0.3, 0.15, 0.1, 0.05]), rng.integers(0, 4, 2))
    train[:8] = 0, 1, 2, 3, 4, 5, 0, 0                           # every id has a successor; of 5 it is always 0
    return train, np.append(rng.integers(0, 6, 12), [5, 2, 5]), 6, float(rng.choice([0.3, 0.4]))


COUNTED, LOOKED_UP = "(counts + k) / (counts + k).sum(1, keepdims=True)", "table[held_out[:-1], held_out[1:]]"
ADDED = "np.add.at(counts, (train[:-1], train[1:]), 1)"
PROBABILITY = "(np.exp(logits - peak) / np.exp(logits - peak).sum(-1, keepdims=True))[np.arange(len(targets)), targets]"
SURPRISE = "log_sum - logits[np.arange(len(targets)), targets]"

EXERCISES = {
    "00.cross_entropy": Exercise(
        cross_entropy, ("nats",), _cross_entropy_inputs,
        (
            Mistake("max-not-subtracted", "peak = logits.max(-1, keepdims=True)", "peak = 0 * logits.max(-1, keepdims=True)",
                    "the largest logit is not subtracted first: e^900 is infinite, and the surprise with it (0.4)"),
            Mistake("log-of-zero", f"nats = {SURPRISE}", f"nats = -np.log({PROBABILITY})",
                    "the probability is computed first and its logarithm after: a probability of e^-900 is rounded to 0, and the log of 0 is infinite. "
                    "(0.4) never makes the probability"),
            *(Mistake(f"log-of-zero-plus-{eps}", f"nats = {SURPRISE}", f"nats = -np.log({PROBABILITY} + {eps})",
                      f"{eps} is added to the probability before the logarithm: no surprise can then be above {-np.log(float(eps)):.1f}. (0.4) needs no such help")
              for eps in ("1e-9", "1e-12")),
            Mistake("max-not-put-back", "peak[:, 0] + np.log", "np.log", "the largest logit is subtracted, and not added again (0.4)"),
            Mistake("max-put-back-with-minus", "peak[:, 0] + np.log", "-peak[:, 0] + np.log", "the largest logit is subtracted twice; outside the logarithm it is added (0.4)"),
            Mistake("over-the-tokens", ("logits.max(-1, keepdims=True)", "peak[:, 0]", ".sum(-1)"), ("logits.max(0, keepdims=True)", "peak[0]", ".sum(0)"),
                    "the sum of exponentials runs down the tokens; each token has its own, over the vocabulary (0.3)"),
            Mistake("rows-for-columns", "logits[np.arange(len(targets)), targets]", "logits[targets, np.arange(len(targets))]",
                    "rows and columns are exchanged in the look-up: row t is the token, its column is the target (0.3)"),
            Mistake("shifted-twice", "logits[np.arange(len(targets)), targets]", "logits[np.arange(len(targets)), np.roll(targets, -1)]",
                    "every token is given the target of the next one: the targets that come in are shifted already"),
            Mistake("favourite-not-target", "logits[np.arange(len(targets)), targets]", "logits.max(-1)",
                    "it is the surprise at the model's own favourite; what counts is the token that really came (0.1)"),
            Mistake("log-missing", "np.log(np.exp(logits - peak).sum(-1))", "np.exp(logits - peak).sum(-1)", "the logarithm of the sum is missing (0.3)"),
            Mistake("probability", f"nats = {SURPRISE}", f"nats = np.exp(-({SURPRISE}))", "it is the probability of the target itself; the surprise is minus its logarithm (0.1)"),
            Mistake("sign", f"nats = {SURPRISE}", f"nats = -({SURPRISE})", "the sign is missing: a logarithm of a probability is negative, a surprise is not (0.1)"),
            Mistake("bits", f"nats = {SURPRISE}", f"nats = ({SURPRISE}) / np.log(2)", "the surprise is in bits, base 2; (0.1) has the natural logarithm"),
        ),
    ),
    "00.units": Exercise(
        units, ("loss", "perplexity", "bits_per_byte"), _units_inputs,
        (
            Mistake("loss-over-bytes", "loss = nats.mean()", "loss = nats.sum() / size", "the surprises are shared among the bytes; the loss is their mean over the tokens (0.2)"),
            Mistake("loss-summed", "loss = nats.mean()", "loss = nats.sum()", "the surprises are summed: a longer text would be a worse one. The loss is their mean (0.2)"),
            Mistake("two-to-the-nats", "np.exp(loss)", "2**loss", "2 is raised to a number of nats: it is e^nats, or 2^bits (0.5)"),
            Mistake("e-to-the-bits", "np.exp(loss)", "np.exp(loss / np.log(2))", "e is raised to a number of bits: it is e^nats, or 2^bits (0.5)"),
            Mistake("mean-of-exponentials", "np.exp(loss)", "np.exp(nats).mean()", "the mean is taken after the exponential: one hard token then rules all. The mean comes first (0.5)"),
            Mistake("probability", "np.exp(loss)", "np.exp(-loss)", "it is the (geometric) mean probability, 1 / perplexity (0.5)"),
            Mistake("nats-per-byte", "nats.sum() / np.log(2) / size", "nats.sum() / size", "it is in nats per byte: one bit is ln 2 nats, so divide by ln 2 (0.6)"),
            Mistake("times-ln-two", "nats.sum() / np.log(2) / size", "nats.sum() * np.log(2) / size", "it is multiplied by ln 2: a bit is smaller than a nat, so there are more of them. Divide (0.6)"),
            Mistake("per-token", "nats.sum() / np.log(2) / size", "nats.sum() / np.log(2) / len(nats)", "it is bits per token: that depends on the tokenizer. Divide by the bytes (0.6)"),
            Mistake("per-character", 'len(text.encode("utf-8"))', "len(text)", "the characters are counted: in UTF-8 a 龍 has 3 bytes, a 🦁 has 4 (0.6)"),
            Mistake("upside-down", "nats.sum() / np.log(2) / size", "nats.mean() / np.log(2) * size / len(nats)", "the mean is multiplied by bytes/tokens; it must be tokens/bytes (0.6)"),
            Mistake("loss-per-byte", "nats.sum() / np.log(2) / size", "nats.mean() / np.log(2) / size", "the mean per token is divided by the bytes; it is the sum over the text that is shared among its bytes (0.6)"),
        ),
    ),
    "00.bigram": Exercise(
        bigram, ("table", "loss"), _bigram_inputs,
        (
            Mistake("not-shifted", (ADDED, COUNTED, LOOKED_UP),
                    ("np.add.at(counts, (train[:-1], train[:-1]), 1)", "(k + counts) / (k + counts).sum(1, keepdims=True)", "table[held_out[:-1], held_out[:-1]]"),
                    "the targets are not shifted by one: every token predicts itself, and the loss falls below the floor"),
            Mistake("not-shifted-in-the-loss", LOOKED_UP, "table[held_out[:-1], held_out[:-1]]", "the loss looks up each token after itself: the target is the next one"),
            Mistake("backwards", ADDED, "np.add.at(counts, (train[1:], train[:-1]), 1)", "it counts what comes before: the row is the token that is known, the column the one that follows (0.13)"),
            Mistake("repeats-count-once", ADDED, "counts[train[:-1], train[1:]] += 1",
                    "a pair counts once, however often it occurs: `counts[a, b] += 1` adds once for repeated indices. np.add.at adds each time"),
            Mistake("columns-for-rows", COUNTED, "(counts + k) / (counts + k).sum(0, keepdims=True)", "the columns sum to 1; it is each row that must, for it says what follows one token (0.13)"),
            Mistake("keepdims-forgotten", COUNTED, "(counts + k) / (counts + k).sum(1)",
                    "keepdims is forgotten: the sums of the rows are laid along the columns, and entry (a, b) is divided by the sum of row b (0.13)"),
            Mistake("joint", COUNTED, "(counts + k) / (counts + k).sum()", "the whole table sums to 1: that is the probability of the pair. (0.13) is that of b when a is known"),
            Mistake("no-smoothing", COUNTED, "counts / counts.sum(1, keepdims=True)", "k is left out: a pair that was never seen has probability 0, and the log of 0 is infinite (0.14)"),
            Mistake("smoothed-after", COUNTED, "counts / counts.sum(1, keepdims=True) + k", "k is added after the division: the rows no longer sum to 1 (0.14)"),
            Mistake("k-above-only", COUNTED, "(counts + k) / counts.sum(1, keepdims=True)", "k is added to the counts, and not to their sum: the rows no longer sum to 1 (0.14)"),
            Mistake("k-once-below", COUNTED, "(counts + k) / (counts.sum(1, keepdims=True) + k)", "the sum grows by k; it must grow by k for each of the V entries, k V in all (0.14)"),
            Mistake("add-one", COUNTED, "(counts + 1) / (counts + 1).sum(1, keepdims=True)", "1 is added in place of k (0.14)"),
            Mistake("scored-on-train", LOOKED_UP, "table[train[:-1], train[1:]]", "the loss is that of the text which was counted; a held-out text shows what was learned"),
            Mistake("log-of-the-mean", "-np.log(q).mean()", "-np.log(q.mean())", "the mean is taken of the probabilities, and its logarithm after: (0.2) is a mean of logarithms"),
            Mistake("sum-not-mean", "-np.log(q).mean()", "-np.log(q).sum()", "the surprises are summed; the loss is their mean (0.2)"),
            Mistake("bits", "-np.log(q).mean()", "-np.log2(q).mean()", "the loss is in bits, base 2; (0.1) has the natural logarithm"),
            Mistake("sign", "-np.log(q).mean()", "np.log(q).mean()", "the minus is missing: a surprise is not negative (0.1)"),
        ),
    ),
}
