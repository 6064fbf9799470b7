"""A training on the console: what is trained on what, a bar, evaluations, samples; and loss.png after every checkpoint."""
import math
import sys
import time

from tqdm import tqdm

from ..errors import InputError, missing_package
from ..evaluate import format_scores, mix_floor
from ..nn import count_params
from ..train import Watcher

SAMPLE_CHARACTERS = 300


def printable(line):
    """A line without the characters that would move the cursor or change colours."""
    return "".join(character if character.isprintable() else "\ufffd" for character in line)


class Console(Watcher):
    """Prints and draws. A context manager: the bar is closed whatever happens.

    looks: bool    write look.html at the end
    """

    def __init__(self, looks=True):
        self.looks, self.began = looks, time.perf_counter()
        self.bar = self.inner = self.result = None
        self.draws = True

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for bar in (self.inner, self.bar):
            if bar:
                bar.close()

    def begins(self, run, engine):
        config, model, shards = run.config, run.config.model, run.mixture.shards
        if engine.step >= config.last_step:
            print(f"{run.out}: complete: all {config.train.steps} steps are done. To train longer: "
                  f"python -m minillama train --resume --out {run.out} --steps {2 * config.train.steps}")
        elif engine.step > config.start_step:
            print(f"{run.out}: continuing after step {engine.step}")
        elif config.from_model:
            print(f"{run.out}: starting from {config.from_model}")
        print(f"{run.out}: {config.preset}, {count_params(model):,} parameters, dim {model.dim}, {model.n_layers} layers, "
              f"{model.n_heads} heads, context {model.max_seq_len}; {engine.about}")
        for shard in shards:
            print(f"  {shard.name:<12} {100 * shard.share:5.1f}% of the batches, {len(shard.train.tokens):>11,} training tokens, "
                  f"{shard.val.scored:>9,} held out, {shard.val.bytes / shard.val.scored:.2f} bytes/token")
        vocab_size = run.tokenizer.vocab_size
        alike, chance = math.log(vocab_size), model.dim * (config.train.init_std or model.dim**-0.5) ** 2 / 2  # ln V, var(logits) / 2
        first = (f"expect a loss near {alike + chance:.2f} nats/token at the start: ln {vocab_size} = {alike:.2f}, as if all {vocab_size} "
                 f"tokens, 256 of them single bytes, were equally likely, and {chance:.2f} because the fresh head prefers some by chance")
        floor = mix_floor(shards)
        known = "its entropy is not known" if floor is None else f"the floor is {floor:.3f}: no model can do better on average"
        print(f"  {'the weights are not fresh' if config.from_model else first}\n  {known}")
        self.bar = tqdm(total=config.train.steps, initial=engine.step - config.start_step, unit="step", dynamic_ncols=True,
                        mininterval=0.5 if sys.stdout.isatty() else 15,  # seconds; a log file needs fewer lines than an eye
                        file=sys.stdout)

    def scores(self, tokens, total):
        if self.inner is None:
            self.inner = tqdm(total=total, desc="held-out text", unit="tokens", unit_scale=True, leave=False, disable=None)
        self.inner.update(tokens)

    def scored(self, record, result):
        self.result = result
        if self.inner:
            self.inner.close()
            self.inner = None
        loss, floor = record["val_loss"], record["floor"]
        above = "" if floor is None else f", {100 * (loss / floor - 1):.1f}% above the floor of {floor:.3f}"
        self.bar.write(f"step {record['step']}: validation loss {loss:.4f}{above}, {record['val_bits_per_byte']:.3f} bits/byte")

    def sampled(self, text):
        shown = text[:SAMPLE_CHARACTERS] + ("..." if len(text) > SAMPLE_CHARACTERS else "")
        self.bar.write("  it writes:\n" + "\n".join("  | " + printable(line) for line in shown.splitlines()))

    def stepped(self, record):
        self.bar.set_postfix_str(f"loss {record['loss']:.3f}, lr {record['lr']:.1e}, {record['tokens_per_s']:,} tokens/s", refresh=False)
        self.bar.update()

    def saved(self, run, records):
        if not self.draws:
            return
        try:
            from .plot import plot_loss  # matplotlib takes a second to import
        except ModuleNotFoundError as error:
            if (sentence := missing_package(error)) is None:
                raise
            self.draws = False
            self.bar.write(f"no loss.png: {sentence}")
            return
        model = run.config.model
        plot_loss(records, run.out / "loss.png", f"{run.out.name}: {count_params(model):,} parameters", model.vocab_size)

    def ends(self, run, step, complete):
        self.bar.close()
        if not complete:
            print(f"stopped after step {step} of {run.config.last_step}, all saved; "
                  f"to continue: python -m minillama train --resume --out {run.out}")
            return
        if self.result is not None:
            print(format_scores(self.result))
        if self.looks:
            self._look(run)
        seconds = time.perf_counter() - self.began
        prompt = "" if run.config.data else ' --prompt "Tom met"'  # of the built-in text a beginning is known
        print(f"{run.out}: done in {seconds:.0f} s. To let it write: python -m minillama generate {run.out}{prompt}")

    def _look(self, run):
        """Write look.html. The run is complete and saved: nothing that goes wrong here is worth more than a line."""
        from ..look.data import write_look

        page = run.out / "look.html"
        try:
            write_look(page, run.out, run.mixture.shards)
        except InputError as error:
            print(f"no look.html: {error}")
        except OSError as error:
            print(f"no look.html: {error.filename or page}: {error.strerror or error}")
        except MemoryError:
            print("no look.html: this machine's memory does not suffice")
        else:
            print(f"{page}: open it in a browser to see, token by token, what the model does with a text that it was not trained on")
