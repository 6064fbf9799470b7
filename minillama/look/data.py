"""A view: everything there is to see of one text in one model, as a dict that JSON can hold.

Session opens a run, a checkpoint or a model and makes views of texts. html.py puts a view into one file; server.py asks a Session for
more. All losses, costs and influences are in nats; T is the number of tokens with <s>; token t is guessed at position t - 1.

    run, checkpoint, checkpoints      what was opened; the names there are
    model                             n_layers, n_heads, dim, vocab_size, parameters
    context                           most tokens of a text
    text, source, unit                source: of the built-in corpus, where only one fits
    tokens                            T of {id, piece, text, bytes, loss, known, options}; clash: true where the grammar excludes the token.
                                      loss is null for <s>; known and options where nothing is known (known.py)
    mean                              {loss, known} of a token; known is null unless all tokens are
    expected                          T lists of the likeliest [id, piece, probability, probability as known | null]
    entropy                           T: of the whole distribution
    temperature                       {grid, log_sum: T x grid, ln sum p^(1/temperature)} | null where the vocabulary is too large
    attention, attention_shape        base64 of uint8 (L, H, T, T), round(255 p) | null where too large
    lens                              {top: (L + 1) x T [piece, probability], target_p: (L + 1) x T, of the true next; null at the end}
    contributions                     {names: 2L + 1, target: (T - 1) x (2L + 1) parts of the true next token's logit, logit: T - 1}
    ablation                          (L * H) x T changes of loss with that head off, layer by layer | null where it would take too long
    influence, sensitivity            T rows, [t][s] for s < t: what embedding s is worth to token t, signed and without a sign, see
                                      inside.Influence | both null where they were not asked for
    history                           {checkpoints: a dozen names, loss: as many x T} | null
    vocabulary                        V pieces | null where there are more than 4096
    sources, runs                     names that `document` takes; folders of other runs
    off                               [[layer, head]] that are switched off
    live                              false; a server's page is live
"""
import base64
import random
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import check_name
from ..nn import count_params
from ..run.checkpoint import finished, load_params
from ..run.folder import check_fingerprints, holds_run, load, read_config
from ..text import corpus
from ..text.model_file import BYTE
from . import inside
from .known import PerfectReader

LIKELIEST = 10
OPTIONS = 64  # at most, of a token
DOCUMENT = 256  # tokens of a document that is shown, if the context is longer
GLIMPSE = 96  # of the one that `train` shows
MAX_MAPS = 1 << 23  # numbers in all attention maps
MAX_PIECES = 4096  # of a vocabulary that is in the view
MAX_TEMPERATURE = 1 << 22  # T * V
HISTORY = 12  # checkpoints
EFFORT = 3e10  # floating-point operations that a panel may take: a second or two on a laptop
PATIENT_EFFORT = 3e11  # of a file that somebody waits for
TEMPERATURES = [round(0.1 * step, 1) for step in range(1, 21)]
UNSEEN = -1  # seed of the built-in documents shown: no training has a negative one


class Session:
    """A model that is looked at, opened as `eval` and `generate` open theirs.

    path:       of a run, a checkpoint, or a model that `import` reads
    checkpoint: str | None            name of the one that is shown unless another is asked for; None: the newest
    shards:     list of Shard | None  the run's text, if somebody has it at hand

    Raises:
        InputError: something is missing or broken
    """

    def __init__(self, path, checkpoint=None, shards=None):
        self.path, self._shards = Path(check_name(path)), shards
        trained = load(self.path)
        self.run, self.tokenizer, self.config = trained.config, trained.tokenizer, trained.config.model
        self._is_run, self._loaded = holds_run(self.path), {}
        self.shown = f"step-{trained.step:06d}" if self._is_run else None
        if checkpoint is None:
            self._loaded[self.shown] = dict(trained.params.items())
        else:
            self.params(checkpoint)                              # or it is not there
            self.shown = checkpoint
        builtin = trained.has_text and not self.run.data and self.tokenizer.may_cut("a", " ")
        self.reader = PerfectReader(self.tokenizer) if builtin else None  # None: nothing is known of the text
        self.sources = list(corpus.SOURCES) if builtin else [Path(name).stem for name in self.run.data] if trained.has_text else []
        self._others = {}
        self.max_text_bytes = 64 * self.config.max_seq_len       # no more can fit the context, but for a very long piece

    # ---- what is opened

    @property
    def checkpoints(self):
        """Names of the run's checkpoints, oldest first; none for a model from elsewhere."""
        return [path.name for path in finished(self.path / "checkpoints")] if self._is_run else []

    def params(self, checkpoint=None):
        """The parameters of a checkpoint, None the one that is shown: dict. Raises InputError for one that is not there."""
        name = self.shown if checkpoint is None else checkpoint
        if name not in self._loaded:
            if name not in self.checkpoints:
                names = self.checkpoints
                there = f"one of {names[0]} to {names[-1]}" if names else "left out: this model has only one"
                raise InputError(f"the checkpoint must be {there}, got {name!r:.60}")
            kept = HISTORY if self._is_small else 1
            while len(self._loaded) > kept:
                del self._loaded[next(iter(self._loaded))]
            self._loaded[name] = dict(load_params(self.path / "checkpoints" / name, self.config).items())
        return self._loaded[name]

    @property
    def _is_small(self):
        return 2 * count_params(self.config) * HISTORY < 2e8     # a dozen checkpoints are read and held in no time

    def encode(self, text):
        """Tokens of a text, <s> first: (T,) int64. Raises InputError where the model has no room for it."""
        tokens, context = np.array(self.tokenizer.encode(text, bos=True)), self.config.max_seq_len
        if len(tokens) > context:
            raise InputError(f"the text must have at most {context} tokens (the context of this model), got {len(tokens)}")
        return tokens

    def _forward(self, tokens, params):
        with np.errstate(all="ignore"):
            run = inside.forward(tokens, params, self.config)
        if not np.isfinite(run.logits).all():
            raise InputError("the model's logits are not finite: its weights are broken, or its training has diverged")
        return run

    # ---- what may be asked

    def view(self, text, checkpoint=None, off=(), influence=False, effort=EFFORT):
        """Everything there is to see of a text: dict, see the module's docstring.

        Args:
            text:       str
            checkpoint: str | None    a name; None: the one that is shown
            off:        iterable of (layer, head) that are switched off
            influence:  bool          of all tokens; a live page asks for them one by one
            effort:     float         floating-point operations that ablation and influence may take, each; else they are null

        Raises:
            InputError: a text that is too long or not text, no such checkpoint or head
        """
        tokens, off = self.encode(text), self._heads(off)
        params = inside.without_heads(self.params(checkpoint), self.config, off)
        run = self._forward(tokens, params)
        losses = inside.losses(run.logits, tokens)
        known = self.reader.expect(tokens.tolist()) if self.reader else [None] * len(tokens)
        rows, T, config = self._tokens(tokens, losses, known), len(tokens), self.config
        costs = [row["known"] for row in rows[1:]]
        forward_flops, n_heads = 2 * count_params(config) * T, config.n_layers * config.n_heads
        asks_influence = influence and T > 1 and 3 * forward_flops * T / 2 <= effort
        return {
            "run": str(self.path), "checkpoint": self.shown if checkpoint is None else checkpoint, "checkpoints": self.checkpoints,
            "live": False,
            "model": {"n_layers": config.n_layers, "n_heads": config.n_heads, "dim": config.dim, "vocab_size": config.vocab_size,
                      "parameters": count_params(config)},
            "context": config.max_seq_len, "text": text, "source": self._source(text), "unit": "nats",
            "tokens": rows,
            "mean": {"loss": _rounded(losses.mean()) if T > 1 else None,
                     "known": _rounded(np.mean(costs)) if costs and None not in costs else None},
            **self._predictions(run, known),
            **self._attention(run),
            "lens": self._lens(run, tokens, params),
            "contributions": self._contributions(run, tokens, params),
            "ablation": [[None, *row] for row in _rounded(inside.ablation(tokens, params, config))]
            if n_heads * forward_flops <= effort else None,
            **(self._influences(tokens, params) if asks_influence else {"influence": None, "sensitivity": None}),
            "history": self._history(tokens, off),
            "vocabulary": [piece for piece, _, _ in self.tokenizer.pieces] if config.vocab_size <= MAX_PIECES else None,
            "sources": self.sources, "runs": self._neighbours(), "off": [list(pair) for pair in off],
        }

    def replace(self, text, checkpoint, position, id):
        """The text with another token in one place: {"losses": T, null for <s>; "text"; "piece"}."""
        tokens = self.encode(text)
        self._check_position(position, tokens, lowest=1)
        if not 0 <= id < self.config.vocab_size:
            raise InputError(f"a token id must be from 0 to {self.config.vocab_size - 1} (the vocabulary), got {id}")
        tokens[position] = id
        losses = inside.losses(self._forward(tokens, self.params(checkpoint)).logits, tokens)
        return {"losses": [None, *_rounded(losses)], "text": self.tokenizer.decode(tokens), "piece": self.tokenizer.pieces[id][0]}

    def influence(self, text, checkpoint, position):
        """What each token before it is worth to one token: {"influence": T floats, "sensitivity": T floats}, see a view."""
        tokens = self.encode(text)
        self._check_position(position, tokens, lowest=1)
        signed, sensitivity = inside.influence(tokens, [position], self.params(checkpoint), self.config)
        return {"influence": _rounded(signed[0]), "sensitivity": _rounded(sensitivity[0])}

    def attention(self, text, checkpoint, position):
        """Where every head looked from one position: {"shape": [L, H, T], "row": base64 of uint8}."""
        tokens = self.encode(text)
        self._check_position(position, tokens, lowest=0)
        row = inside.attention_row(self._forward(tokens, self.params(checkpoint)), position)
        return {"shape": list(row.shape), "row": _bytes(row)}

    def document(self, source=None, seed=0, most=DOCUMENT):
        """A document that this model was not trained on: {"text", "source"}.

        Args:
            source: str | None    None: any of the run's
            seed:   int           the same seed gives the same document
            most:   int           tokens of it, if it has more; the context is a limit, too

        Raises:
            InputError: no such source, or a model without text of its own
        """
        if not self.sources:
            raise InputError(f"{self.path} was not trained here and has no text of its own: --text or --file says what to look at")
        if source not in (*self.sources, None):
            raise InputError(f"the source must be one of {', '.join(self.sources)}, got {source!r:.60}")
        rng, room = random.Random(seed), min(most, self.config.max_seq_len) - 1  # without <s>
        source = source or rng.choice(self.sources)
        if self.reader:
            return {"text": self._cut(corpus.document(source, UNSEEN, seed).text, room), "source": source}
        tokens = self._held_out(source)
        starts = np.flatnonzero(tokens == self.tokenizer.bos_id)
        number = rng.randrange(len(starts))
        document = tokens[starts[number] + 1:[*starts, len(tokens)][number + 1] - 1]  # without <s> and </s>
        start = rng.randrange(max(len(document) - room, 0) + 1)
        return {"text": self._cut(self.tokenizer.decode(document[start:start + room]).strip("\ufffd"), room), "source": source}

    def compare(self, run, text):
        """The view of the same text in another run. Raises InputError where there is none."""
        if run not in self._others:
            self._others = {run: Session(run)}                   # one at a time is held
        return self._others[run].view(text)

    # ---- the parts of a view

    def _heads(self, off):
        heads = list(dict.fromkeys((layer, head) for layer, head in off))
        for layer, head in heads:
            if not (0 <= layer < self.config.n_layers and 0 <= head < self.config.n_heads):
                raise InputError(f"a head must be from layer 0, head 0 to layer {self.config.n_layers - 1}, head "
                                 f"{self.config.n_heads - 1}, got layer {layer}, head {head}")
        return heads

    def _check_position(self, position, tokens, lowest):
        if not lowest <= position < len(tokens):
            raise InputError(f"the position must be from {lowest} to {len(tokens) - 1}, the last token, got {position}")

    def _source(self, text):
        fitting = self.reader.sources(text) if self.reader else []
        return fitting[0] if len(fitting) == 1 else None

    def _tokens(self, tokens, losses, known):
        stream, rows, text, clashed = self.tokenizer.stream(), [], "", not self.reader
        for t, id in enumerate(tokens.tolist()):
            piece, _, kind = self.tokenizer.pieces[id]
            added, before = stream.push(id), known[t - 1] if t else None
            text += added
            row = {"id": id, "piece": piece, "text": added, "bytes": piece[3:5].lower() if kind == BYTE else added.encode().hex(" "),
                   "loss": _rounded(losses[t - 1]) if t else None, "known": None, "options": before and before.options[:OPTIONS]}
            if before and id in before.tokens:
                row["known"] = max(0.0, _rounded(-np.log(before.tokens[id])))  # never -0.0
            elif not clashed and not self.reader.sources(text):
                row["clash"] = clashed = True
            rows.append(row)
        return rows

    def _predictions(self, run, known):
        ln_p, expected = inside.log_probs(run.logits), []
        for row, before in zip(ln_p, known):
            ids = np.argsort(-row, kind="stable")[:LIKELIEST].tolist()
            expected.append([[id, self.tokenizer.pieces[id][0], _rounded(np.exp(row[id]), 6),
                              before and _rounded(before.tokens.get(id, 0.0), 6)] for id in ids])
        scaled = None
        if ln_p.size <= MAX_TEMPERATURE:
            peak = ln_p.max(-1, keepdims=True)
            sums = [np.log(np.exp((ln_p - peak) / tau).sum(-1)) + peak[:, 0] / tau for tau in TEMPERATURES]
            scaled = {"grid": TEMPERATURES, "log_sum": _rounded(np.stack(sums, 1))}
        return {"expected": expected, "entropy": _rounded(inside.entropy(run.logits)), "temperature": scaled}

    def _attention(self, run):
        shape = [self.config.n_layers, self.config.n_heads, len(run.logits), len(run.logits)]
        maps = _bytes(inside.attention(run)) if np.prod(shape) <= MAX_MAPS else None
        return {"attention": maps, "attention_shape": shape}

    def _lens(self, run, tokens, params):
        top, target_p = [], []
        for logits in inside.lens(run, params, self.config):
            p = np.exp(inside.log_probs(logits))
            ids = p.argmax(-1)
            top.append([[self.tokenizer.pieces[id][0], _rounded(p[t, id], 4)] for t, id in enumerate(ids.tolist())])
            target_p.append([*_rounded(p[np.arange(len(p) - 1), tokens[1:]]), None])
        return {"top": top, "target_p": target_p}

    def _contributions(self, run, tokens, params):
        names = [f"{layer} {part}" for layer in range(self.config.n_layers) for part in ("attention", "feed-forward")]
        target = inside.contributions(run, tokens[1:], params, self.config)
        return {"names": ["embedding", *names], "target": _rounded(target),
                "logit": _rounded(run.logits[np.arange(len(target)), tokens[1:]])}

    def _influences(self, tokens, params):
        found = inside.influence(tokens, np.arange(1, len(tokens)), params, self.config)
        signed, sensitivity = ([[], *(_rounded(row[:t], 4) for t, row in enumerate(rows, 1))] for rows in found)
        return {"influence": signed, "sensitivity": sensitivity}

    def _history(self, tokens, off):
        names = self.checkpoints
        if len(names) < 2 or not self._is_small:
            return None
        names = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, HISTORY).round().astype(int))]
        losses = []
        for name in names:
            params = inside.without_heads(self.params(name), self.config, off)
            losses.append([None, *_rounded(inside.losses(self._forward(tokens, params).logits, tokens))])
        return {"checkpoints": names, "loss": losses}

    # ---- texts

    def _cut(self, text, room):
        """The beginning of a text, at most `room` tokens."""
        keep = room
        while len(ids := self.tokenizer.encode(text)) > room:    # what is left may be tokenised into more than was kept
            text, keep = self.tokenizer.decode(ids[:keep]).rstrip("\ufffd"), keep - 1
        return text

    def _held_out(self, source):
        """Validation tokens of a source: (n,) uint16."""
        if self._shards is None:
            from ..text.prepare import make_sources, prepare_shards

            sources = make_sources(self.run.data, self.run.train.seed)
            check_fingerprints(self.path, self.tokenizer, sources)
            self._shards = prepare_shards(sources, self.tokenizer, self.path.parent / ".cache", self.run.train.val_fraction)
        return self._shards[self.sources.index(source)].val.tokens

    def _neighbours(self):
        if not self._is_run:
            return []
        try:
            return sorted(str(path) for path in self.path.parent.iterdir() if path != self.path and holds_run(path))[:20]
        except OSError:
            return []


def write_look(path, run, shards):
    """What `train` leaves in a run's folder: the page of one document that the run held out, made within two seconds.

    Args:
        path:   Path             of the file
        run:    Path             the run, with a checkpoint
        shards: list of Shard    its text

    Raises:
        InputError: the model is too large for that, or broken
        OSError: it cannot be written
    """
    from .html import write_html

    if 2 * count_params(read_config(run).model) * GLIMPSE > EFFORT:
        raise InputError(f"this model is too large to be looked at in a moment: python -m minillama look {run} takes its time")
    session = Session(run, shards=shards)
    write_html(path, session.view(session.document(session.sources[0], most=GLIMPSE)["text"], influence=True))


def _bytes(probabilities):
    """base64 of round(255 p)."""
    return base64.b64encode(np.round(255 * probabilities).astype(np.uint8).tobytes()).decode()


def _rounded(values, digits=5):
    """Numbers for JSON: a float, or nested lists of them."""
    return np.round(np.asarray(values, np.float64), digits).tolist()
