"""The command line: `python -m minillama COMMAND --help` tells all of it.

Each command is two functions: `_add_X` says what it takes, `_X` makes a request of it and calls what does the work.
"""
import os
import signal


def _leave(number, frame):
    """Ctrl-C before a command has begun: nothing is to be put away yet."""
    os._exit(130)


if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is to be ignored: nohup
    signal.signal(signal.SIGINT, _leave)

import argparse  # noqa: E402
import dataclasses  # noqa: E402
import itertools  # noqa: E402
import json  # noqa: E402
import shutil  # noqa: E402
import sys  # noqa: E402
from contextlib import nullcontext  # noqa: E402
from pathlib import Path  # noqa: E402

from . import __version__, machine  # noqa: E402

machine.prepare()  # before NumPy is imported

from .config import (  # noqa: E402
    ATTENTIONS,
    ENGINES,
    FILE_DTYPES,
    FORMATS,
    GPUS,
    MAX_THREADS,
    PARALLEL,
    PRESETS,
    TRAIN_DTYPES,
    EngineConfig,
    ModelConfig,
    TrainConfig,
    check_number,
)
from .errors import InputError, Told, sentence  # noqa: E402
from .files import check_name, read_bytes  # noqa: E402
from .world import EXAMPLE, check_restarts, check_rows, open_world, settle_parallel  # noqa: E402

MAX_STDIN = 100_000_000  # bytes
MAX_LOOK = 1_000_000  # bytes of a text that is looked at; how many tokens it may have, the model says
MAX_TRIALS, MAX_SHOTS = 100_000, 1000
TIMEOUT, MAX_TIMEOUT = 1800.0, 1e6  # seconds: a checkpoint of many gigabytes takes minutes to reach a disk


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help with the examples kept as they are written, in at most 100 columns."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=30, width=min(100, shutil.get_terminal_size((100, 24)).columns))


class Parser(argparse.ArgumentParser):
    """One sentence for a wrong argument, like every other error, and exit status 2."""

    def error(self, message):
        words = message.removeprefix("unrecognized arguments: ").split() if message.startswith("unrecognized arguments") else []
        files = [word for word in words if os.path.isfile(word)]
        hint = f"; a text is given with --data {files[0]}" if files and self.prog.endswith((" train", "minillama")) else ""
        first = os.environ.get("LOCAL_RANK", "0") == "0"         # of several processes on a machine one says it
        self.exit(2, f"error: {message}{hint} ({self.prog} --help)\n" if first else None)


def _path(text):
    try:
        return Path(check_name(text))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _text(text):
    """A text as it was typed, where the environment says ASCII and the terminal sends UTF-8."""
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        return text


def _seconds(text):
    try:
        return check_number("it", float(text), float, above=0, high=MAX_TIMEOUT)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error) if isinstance(error, InputError) else f"{text!r:.60} is no number") from None


def _vocab_size(text):
    try:
        return text if text == "chars" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is neither a whole number nor 'chars'") from None


def _add_config_flags(group, config_class, skip=()):
    """One flag per field of a configuration, its help and type taken from there, with the default preset's value, and the paper's where
    it gives one. Flags not given stay out of the namespace."""
    for field in dataclasses.fields(config_class):
        if field.name not in skip:
            values = [f"nano: {(PRESETS['nano'].model | PRESETS['nano'].train).get(field.name, field.default)}"]
            values += [f"LLaMA-1: {field.default}"] if field.metadata["paper"] else []
            letter = field.type.__name__[0].upper()
            text = f"{field.metadata['help']} ({'; '.join(values)})".replace("%", "%%")
            flag = "--" + field.name.replace("_", "-")
            group.add_argument(flag, type=field.type, default=argparse.SUPPRESS, metavar=letter, help=text)


def _add_engine(group):
    group.add_argument("--engine", choices=ENGINES, default="auto", help="what computes (default auto: the fastest here)")


def _add_train(commands):
    presets = "\n".join(f"  {name:<6} {p.about}" for name, p in PRESETS.items())
    about = "train a LLaMA, on the built-in text or on yours"
    parser = commands.add_parser("train", formatter_class=Formatter, help=about, description=f"""\
Train a LLaMA. With no arguments: the nano preset on the built-in text, a few minutes on a laptop.

presets:
{presets}

examples:
  python -m minillama train
  python -m minillama train --data book.txt --vocab-size chars
  python -m minillama train --data prose.txt=0.35 --data facts.jsonl=0.65 --preset micro
  python -m minillama train --resume --out runs/book
  python -m minillama train --from runs/nano --data book.txt --lr 3e-4 --steps 500 --out runs/tuned
  {EXAMPLE} --preset small

Ctrl-C finishes the step, saves and exits with status 130; --resume continues, with the NumPy engine to the very same bits.
A preset replaces LLaMA-1's values, --config replaces the preset's, and a flag replaces them all.
With --from, shape and tokenizer are those of the model; the preset's recipe, schedule and steps are the run's own.
torchrun starts several processes, one for each GPU. They share the rows of every step, whose batch is the same for any number
of them; missing rows are filled up with rows that are not scored. --resume may change their number.""")
    data = parser.add_argument_group("text")
    data.add_argument("--data", action="append", metavar="FILE[=WEIGHT]", default=argparse.SUPPRESS,
                      help="a UTF-8 text file (one document) or .jsonl (one per line, under \"text\"); repeat it to mix "
                           "several by weight (default weight 1; without --data: the built-in corpus)")
    data.add_argument("--vocab-size", type=_vocab_size, metavar="N|chars", default=argparse.SUPPRESS,
                      help="pieces of the tokenizer that is trained on the text (default: the preset's, or the most the text "
                           "supports), or 'chars': one token per character")
    run = parser.add_argument_group("run")
    run.add_argument("--preset", choices=list(PRESETS), default=argparse.SUPPRESS, help="shape and recipe (default nano)")
    run.add_argument("--config", type=_path, metavar="FILE.toml", help="settings, as in a run's config.toml")
    run.add_argument("--out", type=_path, metavar="DIR",
                     help="the run's folder (default runs/NAME, after the text or the preset; with a number if that is taken)")
    run.add_argument("--from", dest="from", default=argparse.SUPPRESS, metavar="MODEL",
                     help="start from these weights instead of fresh ones: a run, a checkpoint, or what `import` reads")
    run.add_argument("--keep-optimizer", action="store_true",
                     help="with --from a run: its AdamW moments, too, and its steps count on (default: fresh moments)")
    run.add_argument("--resume", action="store_true",
                     help="continue the run in --out, with the settings it was started with; flags may repeat them, not change them")
    run.add_argument("--threads", type=int, default=argparse.SUPPRESS, metavar="N",
                     help="processor threads (default: all cores), which several processes share; the same number gives the same bits")
    run.add_argument("--no-look", action="store_true", help="do not write look.html, the page of one held-out document, at the end")
    engine = parser.add_argument_group("engine", "No part of the run: --resume may change it.")
    _add_engine(engine)
    engine.add_argument("--device", metavar="NAME", help="of torch and triton: cpu, mps, cuda, cuda:1 ... (default: a GPU if there is one)")
    engine.add_argument("--dtype", choices=TRAIN_DTYPES,
                        help="of torch and triton, to compute in; the weights learned are float32 (default bfloat16 on CUDA)")
    engine.add_argument("--attention", choices=ATTENTIONS,
                        help="of triton: what computes attention (default: cudnn on an H100, H200 or B200, else triton)")
    engine.add_argument("--parallel", choices=PARALLEL,
                        help="of torch and triton under torchrun: ddp, whole parameters in every process, or fsdp, all that is learned "
                             "split over them (default ddp)")
    engine.add_argument("--timeout", type=_seconds, default=TIMEOUT, metavar="S",
                        help=f"seconds that one process waits for another before it gives up (default {TIMEOUT:g})")
    engine.add_argument("--no-graphs", dest="graphs", action="store_const", const=False,
                        help="of torch and triton on CUDA: queue every kernel of a step, instead of replaying recorded ones (CUDA graphs)")
    _add_config_flags(parser.add_argument_group("recipe"), TrainConfig)
    _add_config_flags(parser.add_argument_group("shape"), ModelConfig, skip=("vocab_size",))
    parser.set_defaults(command=_train)


def _train(arguments):
    from .run.config import MODEL_KEYS, TOP_KEYS, TRAIN_KEYS, merged, read_toml

    given = vars(arguments)
    flags = {key: given[key] for key in TOP_KEYS if key in given}
    flags |= {"model": {key: given[key] for key in MODEL_KEYS if key in given and key != "vocab_size"},
              "train": {key: given[key] for key in TRAIN_KEYS if key in given}}
    with open_world(arguments.timeout) as world:
        asked = world.together(lambda: merged(read_toml(arguments.config) if arguments.config else {}, flags))
        return _train_in(world, arguments, asked)


def _train_in(world, arguments, asked):
    """Settle what was asked for, and train. Several processes all do this."""
    from .report.console import Console
    from .report.plan import check_memory
    from .run.folder import holds_run
    from .run.open import facts, read_request
    from .train import Watcher, train

    engine = EngineConfig(arguments.engine, arguments.device, arguments.dtype, arguments.attention, arguments.graphs,
                          settle_parallel(arguments.parallel, world))
    check_restarts(world, arguments.resume, arguments.out)
    out = arguments.out or world.same(_default_out(asked, arguments.resume))

    def settled():
        resume = arguments.resume and (holds_run(out) or not world.restarts)
        request = read_request(out, asked, engine, resume, arguments.keep_optimizer)
        check_rows(request.config.train, world)
        check_memory(request.config, request.engine)
        return request

    request = world.together(settled)
    world.agree(lambda: facts(request))
    with Console(looks=not arguments.no_look) if world.rank == 0 else nullcontext(Watcher()) as watcher:
        return train(request, watcher, world)


def _default_out(asked, resume):
    """runs/NAME: the first text's name, else the preset's; for a new run with a number behind it where that is taken."""
    from .run.folder import free_name
    from .text.sources import split_spec

    data = asked.get("data")
    named = isinstance(data, list) and data and isinstance(data[0], str)
    path = Path("runs") / (Path(split_spec(data[0])[0]).stem if named else str(asked.get("preset", "nano")))
    return path if resume else free_name(path)


def _open(path, engine, threads=None, batch_splits=None):
    """(Trained, Engine) of a run or a model. batch_splits=1 gives all threads to every single token."""
    from .engine.factory import make_engine
    from .run.folder import load

    trained = load(path)
    return trained, make_engine(EngineConfig(engine), trained.config.model, params=trained.params, threads=threads,
                                batch_splits=batch_splits)


def _add_run(parser):
    parser.add_argument("run", metavar="RUN", type=_path, help="folder of a run, or of a checkpoint, or a model that `import` reads")


def _add_generate(commands):
    parser = commands.add_parser("generate", formatter_class=Formatter, help="let a trained model write", description="""\
Continue a prompt; the text appears as it is decoded, and the last line, on standard error, says why it ends.
A prompt like the texts that the model was trained on is answered best.

examples:
  python -m minillama generate runs/nano --prompt "Tom met"
  python -m minillama generate runs/nano --prompt "Ann counts hens" --temperature 0
  python -m minillama generate runs/nano -i""")
    _add_run(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", "-p", type=_text, default="", metavar="TEXT",
                        help="text to continue (default: none, the start of a document)")
    prompt.add_argument("--prompt-file", type=_path, metavar="FILE", help="a UTF-8 text file to continue")
    prompt.add_argument("-i", "--interactive", action="store_true", help="ask for prompts, one a line, until the end of the input")
    parser.add_argument("-n", "--max-new-tokens", type=int, default=200, metavar="N",
                        help="at most this many new tokens; fewer at the end of a document or of the context (default 200)")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="F",
                        help="0 is greedy, 1 the model's own probabilities (default 0.8)")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest tokens only (default 0: all)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P",
                        help="draw from the likeliest tokens that hold this share (default 1: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed writes the same text (default 0)")
    _add_engine(parser)
    parser.set_defaults(command=_generate)


def _generate(arguments):
    from .generate import Sampling

    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    n = check_number("-n", arguments.max_new_tokens, low=1)
    prompt = arguments.prompt
    if arguments.prompt_file:
        prompt = _decoded(read_bytes(arguments.prompt_file, MAX_STDIN), arguments.prompt_file)
    trained, engine = _open(arguments.run, arguments.engine, batch_splits=1)
    if not arguments.interactive:
        _write(engine, trained.tokenizer, prompt, n, sampling)
        return
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print()
            return
        try:
            _write(engine, trained.tokenizer, prompt, n, sampling)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)


def _write(engine, tokenizer, prompt, n, sampling):
    """Print a prompt and its continuation, token by token; then, on standard error, why it ends."""
    from .generate import generate

    ids = tokenizer.encode(prompt, bos=True)
    stream, count = tokenizer.stream(ids), 0
    written = generate(engine, ids, n, tokenizer.eos_id, sampling)
    first = next(written, None)                                  # raises for a prompt that is too long, before anything is shown
    sys.stdout.write(f"\033[1m{prompt}\033[0m" if sys.stdout.isatty() else prompt)
    for token in [] if first is None else itertools.chain([first], written):
        sys.stdout.write(stream.push(token))
        sys.stdout.flush()
        count += 1
    sys.stdout.write(stream.finish() + "\n")
    sys.stdout.flush()
    context = engine.config.max_seq_len
    if count == n:
        why = f"-n {n}"
    else:
        why = f"the end of the context of {context} tokens" if len(ids) + count > context else "the end of a document"
    print(f"(stopped after {count} tokens: {why})", file=sys.stderr)


def _add_runs(commands):
    parser = commands.add_parser("runs", formatter_class=Formatter, help="the runs of a folder, with their last loss", description="""\
A line for every run in a folder: preset, parameters, steps, last loss on held-out text, and the entropy floor where it is known.

--json prints [{"run", "preset", "parameters", "step", "steps", "val_loss", "floor"}]; null where it is unknown.""")
    parser.add_argument("folder", nargs="?", type=_path, default=Path("runs"), metavar="DIR", help="default: runs")
    parser.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    parser.set_defaults(command=_runs)


def _runs(arguments):
    from .report.runs import format_runs, list_runs

    found = list_runs(arguments.folder)
    print(json.dumps(found, indent=1) if arguments.json else format_runs(found))


def _add_eval(commands):
    from .tasks import TASKS

    tasks = "\n".join(f"  {name:<9} {task.about}" for name, task in TASKS.items())
    about = "loss of a trained model on held-out text; or tasks"
    parser = commands.add_parser("eval", formatter_class=Formatter, help=about, description=f"""\
Loss (nats/token), bits per byte, perplexity, and the entropy floor where it is known, for every source.

--json prints {{"loss", "bits_per_byte", "perplexity", "floor", "which_source",
               "sources": {{NAME: {{"loss", "bits_per_byte", "floor", "share", "epochs", "which_source"}}}}}};
floor, epochs and which_source are null where they are unknown. which_source: nats/token above the floor that a perfect
model of the mix pays to find out which source a row is from.

--tasks asks questions instead: exact match under greedy decoding, beside what a guesser scores who knows the form of
the answer.
{tasks}
--json prints {{"seed", "tasks": {{NAME: {{"accuracy", "low", "high", "chance", "right", "trials", "shots"}}}}}}; low and high are
the 95 % interval.

--matrix scores several models on the held-out texts of all: in a row a model, in a column a text (own: of this very run).
--json prints {{"unit", "models": {{RUN: {{TEXT: {{"loss", "floor", "excess", "own"}}}}}}}}; the unit is nats/token, or bits/byte
where tokenizers differ.

examples:
  python -m minillama eval runs/nano
  python -m minillama eval runs/nano --data book.txt
  python -m minillama eval runs/nano --tasks
  python -m minillama eval runs/nano --tasks copy reverse --shots 8 --trials 1000
  python -m minillama eval runs/nano --matrix runs/book runs/tuned""")
    _add_run(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--data", action="append", metavar="FILE[=WEIGHT]",
                      help="evaluate all of this text instead of what the run held out; repeat it for several")
    what.add_argument("--tasks", nargs="*", choices=list(TASKS), metavar="NAME", help="ask these tasks (none named: all)")
    what.add_argument("--matrix", nargs="+", type=_path, metavar="RUN", help="score these, too, on each other's texts")
    tasks = parser.add_argument_group("with --tasks")
    tasks.add_argument("--trials", type=int, metavar="N", help="questions of each task (default 200)")
    tasks.add_argument("--shots", type=int, metavar="N", help="solved examples before each question (default: 5, of sums and stories 0)")
    tasks.add_argument("--seed", type=int, metavar="N", help="of the questions (default 0)")
    _add_engine(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (default: all cores)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.set_defaults(command=_eval)


def _eval(arguments):
    engine, threads = EngineConfig(arguments.engine), arguments.threads
    if threads is not None:
        check_number("--threads", threads, low=1, high=MAX_THREADS)
    numbers = {"--trials": (200, 1, MAX_TRIALS), "--shots": (None, 0, MAX_SHOTS), "--seed": (0, 0, 2**63 - 1)}
    trials, shots, seed = (_task_number(arguments, flag, *limits) for flag, limits in numbers.items())
    if arguments.tasks is not None:
        from .report.score import format_tasks, score_tasks

        names = list(dict.fromkeys(arguments.tasks))
        result, text = score_tasks(arguments.run, names, trials, shots, seed, engine, threads), format_tasks
    elif arguments.matrix:
        from .report.matrix import format_matrix, score_matrix

        result, text = score_matrix([arguments.run, *arguments.matrix], engine, threads), format_matrix
    else:
        from .evaluate import format_scores
        from .report.score import score_run

        result, text = score_run(arguments.run, arguments.data, engine, threads), format_scores
    print(json.dumps(result, indent=1) if arguments.json else text(result))


def _task_number(arguments, flag, default, low, high):
    """The value of a flag that only --tasks takes."""
    value = getattr(arguments, flag[2:])
    if value is None:
        return default
    if arguments.tasks is None:
        raise InputError(f"{flag} {value} is for eval --tasks")
    return check_number(flag, value, low=low, high=high)


def _add_compare(commands):
    parser = commands.add_parser("compare", formatter_class=Formatter, help="two runs side by side, step by step", description="""\
How far the training losses of two runs are apart: one recipe on two engines, say, or before and after a change. Draws
both curves, and under them their difference at every step.

--json prints {"runs": [{"run", "steps", "final_loss", "val_loss", "tokens_per_s"}, ...], "common_steps", "largest_difference",
"largest_at_step", "mean_difference", "picture"}; losses in nats/token, val_loss the last one or null, tokens_per_s the median.

example:
  python -m minillama compare runs/numpy runs/torch""")
    parser.add_argument("runs", nargs=2, metavar="RUN", type=_path, help="folders of two runs")
    parser.add_argument("--out", type=_path, default=Path("compare.png"), metavar="FILE.png", help="the picture (default compare.png)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.set_defaults(command=_compare)


def _compare(arguments):
    from .report.compare import compare, format_comparison
    from .report.plot import check_picture, plot_compare
    from .run.folder import load_records

    check_picture(arguments.out)
    records = [load_records(path) for path in arguments.runs]
    names = [str(path) for path in arguments.runs]
    result = compare(*names, *records)
    plot_compare(records, arguments.out, names)
    result["picture"] = str(arguments.out)
    print(json.dumps(result, indent=1) if arguments.json else format_comparison(result))


def _add_look(commands):
    about = "open a model and see what it does, token by token"
    parser = commands.add_parser("look", formatter_class=Formatter, help=about, description="""\
A page on this machine, in the browser: what every token cost and what could be known of it, what the model expected instead, where
each head looked, how the answer formed from layer to layer, and what decided it. Type a text, replace a token, switch a head off.
With --html the same as one file, to keep or to share: no server, no network. Without a text: one that the run held out.

examples:
  python -m minillama look runs/nano
  python -m minillama look runs/nano --text "Tom met Ann in the park"
  python -m minillama look runs/nano --html nano.html""")
    _add_run(parser)
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--text", type=_text, metavar="TEXT", help="what the model reads")
    text.add_argument("--file", type=_path, metavar="FILE", help="a UTF-8 text file that it reads")
    parser.add_argument("--checkpoint", metavar="NAME", help="of a run that keeps several: step-000500, say (default: the newest)")
    parser.add_argument("--html", type=_path, metavar="FILE.html", help="write the page to this file instead of serving it")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="of the server, on 127.0.0.1 only (default: any that is free)")
    parser.add_argument("--no-browser", action="store_true", help="print the page's address, and do not open it")
    parser.set_defaults(command=_look)


def _look(arguments):
    from .look.data import PATIENT_EFFORT, Session
    from .look.html import write_html
    from .look.server import serve

    if arguments.html and arguments.html.is_dir():
        raise InputError(f"--html must be a file, got the folder {arguments.html}")
    text = arguments.text
    if arguments.file:
        text = _decoded(read_bytes(arguments.file, MAX_LOOK), arguments.file)
    session = Session(arguments.run, arguments.checkpoint)
    if text is None:
        text = session.document(*session.sources[:1])["text"]
    if not arguments.html:
        serve(session, text, arguments.port, not arguments.no_browser)
        return
    view = session.view(text, influence=True, effort=PATIENT_EFFORT)
    write_html(arguments.html, view | {"runs": []})              # what else is on this machine is nobody's business
    print(f"{arguments.html}: {len(view['tokens'])} tokens, {arguments.html.stat().st_size:,} bytes; open it in a browser")


def _add_export(commands):
    formats = "\n".join(f"  {name:<8} {about}" for name, about in FORMATS.items())
    parser = commands.add_parser("export", formatter_class=Formatter, help="write a model for other programs", description=f"""\
Write a run's newest checkpoint in the format of another program, without the training state, one tensor at a time.
(A checkpoint, RUN/checkpoints/step-..., already is a Hugging Face directory.)

formats:
{formats}

examples:
  python -m minillama export runs/nano --to hf -o nano-hf
  python -m minillama export runs/nano --to gguf --dtype f16 -o nano.gguf""")
    _add_run(parser)
    parser.add_argument("--to", choices=list(FORMATS), required=True, help="the format")
    parser.add_argument("--dtype", choices=FILE_DTYPES, default="f32", help="of the weights (default f32: what was trained)")
    parser.add_argument("-o", "--out", type=_path, required=True, metavar="PATH", help="what to write: a folder, or a file for gguf")
    parser.set_defaults(command=_export)


def _export(arguments):
    from .interop.llama2c import NORM_EPS as LLAMA2C_NORM_EPS
    from .nn import count_params
    from .run.folder import export_model

    config = export_model(arguments.run, arguments.to, arguments.dtype, arguments.out).config
    print(f"{arguments.out}: {FORMATS[arguments.to]}, {count_params(config):,} parameters in {arguments.dtype}")
    if arguments.to == "llama2c" and config.norm_eps != LLAMA2C_NORM_EPS:
        print(f"note: run.c computes with norm_eps {LLAMA2C_NORM_EPS:g}, and this model was trained with {config.norm_eps:g}",
              file=sys.stderr)


def _add_import(commands):
    parser = commands.add_parser("import", formatter_class=Formatter, help="make a run of somebody else's LLaMA", description="""\
Read a model, check it, and keep it as a run: generate, eval --data, export and train --from work on it.

Read are Hugging Face directories (safetensors), Meta's folders (params.json), GGUF (F32, F16, BF16, Q8_0) and llama2.c's .bin.
It must be LLaMA-1 in shape: what is not (scaled RoPE, biases, another tokenizer) is refused by its key. Key and value heads that
several query heads share are copied for each: the same function, in more memory.
Nothing in a file is ever run. It stays in the dtype it came in.

examples:
  python -m minillama import ~/models/llama-7b-hf -o runs/llama-7b
  python -m minillama import stories15M.bin -o runs/stories""")
    parser.add_argument("source", metavar="SRC", type=_path, help="a folder or a file")
    parser.add_argument("-o", "--out", type=_path, required=True, metavar="RUN", help="the run's folder, which must not exist yet")
    parser.set_defaults(command=_import)


def _import(arguments):
    from .nn import count_params
    from .run.folder import import_model

    model = import_model(arguments.source, arguments.out)
    config, out = model.config, arguments.out
    print(f"{out}: from {model.about}, {count_params(config):,} parameters, dim {config.dim}, {config.n_layers} layers, "
          f"{config.n_heads} heads, context {config.max_seq_len}\nTo talk to it: python -m minillama generate {out} --prompt ...")


def _add_tokenizer(commands):
    parser = commands.add_parser("tokenizer", formatter_class=Formatter, help="train a tokenizer, encode, decode", description="""\
SentencePiece with LLaMA's settings: digits split, unknown characters as bytes.

examples:
  python -m minillama tokenizer train book.txt --vocab-size 1000 --out book.model
  python -m minillama tokenizer encode book.model "2023 + 1999" --pieces
  python -m minillama tokenizer decode book.model 1 300 301""")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    train = actions.add_parser("train", formatter_class=Formatter, help="learn a vocabulary from text files")
    train.add_argument("files", nargs="+", metavar="FILE", help="UTF-8 text, or .jsonl with a document per line under \"text\"")
    train.add_argument("--vocab-size", type=_vocab_size, required=True, metavar="N|chars",
                       help="pieces in all, or 'chars': one per character")
    train.add_argument("--out", type=_path, required=True, metavar="FILE.model", help="where to write it")
    train.set_defaults(command=_tokenizer_train)
    encode = actions.add_parser("encode", formatter_class=Formatter, help="text to ids")
    encode.add_argument("model", metavar="MODEL", type=_path, help="a .model file, or the folder of a run")
    encode.add_argument("text", nargs="?", type=_text, metavar="TEXT", help="default: standard input")
    encode.add_argument("--pieces", action="store_true", help="show the pieces beside the ids")
    encode.set_defaults(command=_tokenizer_encode)
    decode = actions.add_parser("decode", formatter_class=Formatter, help="ids to text")
    decode.add_argument("model", metavar="MODEL", type=_path, help="a .model file, or the folder of a run")
    decode.add_argument("ids", nargs="*", type=int, metavar="ID", help="default: standard input")
    decode.set_defaults(command=_tokenizer_decode)


def _tokenizer_train(arguments):
    from .files import new_path
    from .text.sources import parse_data
    from .text.tokenizer import Tokenizer

    new_path(arguments.out, "--out")
    sources = parse_data(arguments.files)
    texts = (chunk for source in sources for _, chunks, _ in source.held_out() for chunk in chunks)
    tokenizer = Tokenizer.train(texts, arguments.vocab_size)
    tokenizer.save(arguments.out)
    print(f"{arguments.out}: {tokenizer.vocab_size} pieces")


def _decoded(data, where):
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}") from None


def _read_stdin():
    data = sys.stdin.buffer.read(MAX_STDIN + 1)
    if len(data) > MAX_STDIN:
        raise InputError(f"standard input must have at most {MAX_STDIN:,} bytes")
    return _decoded(data, "standard input")


def _tokenizer_encode(arguments):
    from .run.folder import load_tokenizer

    tokenizer = load_tokenizer(arguments.model)
    ids = tokenizer.encode(_read_stdin() if arguments.text is None else arguments.text)
    if arguments.pieces:
        print("\n".join(f"{id:>6} {tokenizer.pieces[id][0]}" for id in ids))
    else:
        print(*ids)


def _tokenizer_decode(arguments):
    from .run.folder import load_tokenizer

    tokenizer = load_tokenizer(arguments.model)
    try:
        ids = arguments.ids or [int(word) for word in _read_stdin().split()]
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"standard input holds something that is not a token id: {error}") from None
    print(tokenizer.decode(ids))


def _add_info(commands):
    parser = commands.add_parser("info", formatter_class=Formatter, help="what a model is made of and what it costs", description="""\
Parameters, arithmetic per token, memory to train, tokens, and GPU-hours beside the paper's, of a run or a preset. With --gpus
also what a training on several GPUs would take: memory, bytes on the wire, speed, days, energy, and what is assumed.

examples:
  python -m minillama info nano
  python -m minillama info 65B --json
  python -m minillama info 65B --gpus 2048
  python -m minillama info 7B --gpus 8 --gpu h100

--json with --gpus has also "gpus": {"count", "gpu", "parallel", "memory_bytes": {"triton", "torch", "processor"}, "fits", "rows",
"batch_size", "micro_batches", "largest_batch_size", "sent_bytes", "sent_seconds", "compute_seconds", "waiting_seconds",
"tokens_per_s_gpu", "days", "gpu_hours", "mwh", "tco2eq", "paper", "assumed"}. Memory is of a GPU with engine triton, with engine
torch, and of a process on a processor. Rows, bytes and seconds are of a GPU and a step, batch_size is of a micro-batch. What is
unknown is null.""")
    parser.add_argument("name", type=_path, metavar="RUN|PRESET",
                        help=f"folder of a run, a model that `import` reads, or one of {', '.join(PRESETS)}")
    parser.add_argument("--gpus", type=int, metavar="N", help="plan a training on N GPUs, in machines of 8")
    parser.add_argument("--gpu", choices=GPUS, help="which GPU: NVIDIA's SXM versions (default a100, the paper's, with 80 GB)")
    parser.add_argument("--parallel", choices=PARALLEL,
                        help="fsdp: all that is learned is split over the GPUs; ddp: each has all parameters (default fsdp)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(command=_info)


def _info(arguments):
    from .report.bench import sgemm_rate
    from .report.plan import format_plan, plan
    from .report.scale import format_scale, scale
    from .run.config import IMPORTED
    from .run.folder import describe

    for flag in ("gpu", "parallel"):
        if getattr(arguments, flag) and arguments.gpus is None:
            raise InputError(f"--gpus must be given with --{flag}, got none")
    if arguments.gpus is not None:
        check_number("--gpus", arguments.gpus, low=1)
    name, trained_here = str(arguments.name), True
    if name not in PRESETS and arguments.name.exists():
        config, title = describe(arguments.name)
        model, recipe, trained_here = config.model, config.train, config.preset != IMPORTED
    elif name in PRESETS:
        model, recipe, title = ModelConfig(**PRESETS[name].model), TrainConfig(**PRESETS[name].train), f"{name}: {PRESETS[name].about}"
    else:
        raise InputError(f"{name} is neither a run, nor a model, nor a preset ({', '.join(PRESETS)})")
    figures = plan(model, recipe, name, trained_here, sgemm_rate(machine.default_threads()))
    page = format_plan(title, model, figures)
    if arguments.gpus is not None:
        figures["gpus"] = scale(model, recipe, arguments.gpus, arguments.gpu or "a100", arguments.parallel, name, figures["train_tokens"])
        page += "\n" + format_scale(recipe, figures["gpus"])
    print(json.dumps(dataclasses.asdict(model) | figures, indent=1) if arguments.json else page)


def _add_gradcheck(commands):
    about = "check every gradient against finite differences"
    parser = commands.add_parser("gradcheck", formatter_class=Formatter, help=about, description="""\
Every op and the whole model, in float64, against central differences: per tensor the worst entry, both values
and their difference relative to the largest gradient of that tensor. Exit status 1 if any is wrong.""")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random inputs (default 0)")
    parser.set_defaults(command=_gradcheck)


def _gradcheck(arguments):
    from .nn.gradcheck import TOLERANCE, check_everything

    check_number("--seed", arguments.seed, low=0, high=2**63 - 1)
    print(f"{'op':<16} {'gradient [worst entry]':<34} {'by hand':>15} {'differences':>15} {'error':>9}")
    passed = True
    for op, report in check_everything(arguments.seed):
        passed &= report.passed
        for line in str(report).splitlines():
            print(f"{op:<16} {line}")
    print(f"{'all' if passed else 'NOT all'} within {TOLERANCE:.0e} of the largest gradient of their tensor")
    return 0 if passed else 1


def _add_bench(commands):
    about = "how fast this machine trains, beside PyTorch, and where the time goes"
    parser = commands.add_parser("bench", formatter_class=Formatter, help=about, description="""\
Time one training step of the NumPy engine beside PyTorch on the same model and batch, each in a process of its own,
taking turns (A B A B), and greedy decoding beside what the memory bandwidth allows. Takes some minutes.

shapes:
  a  dim 128, 4 layers, batch 12 x 64,  vocabulary 65
  b  dim 288, 6 layers, batch 8 x 256,  vocabulary 4096
  c  dim 512, 8 layers, batch 4 x 512,  vocabulary 8192

--json prints {"environment", "train": [{"shape", "threads", "numpy_ms", "torch_ms", "ratio", "compile_ms", "compile_ratio",
"gemm_roofline_ms", "sgemm_gflops", "numpy_mb", "torch_mb", "spread"}], "decode": [{"threads", "tokens_per_s", "roofline_tokens_per_s",
"huggingface_tokens_per_s", "read_gb_per_s", "spread"}]}; null where PyTorch or transformers is not installed. Memory is the peak above
the imports, in MiB; spread is the ninth over the first decile of one contender's times. With --profile instead:
{"profile": {SHAPE: [{"op", "calls", "forward_ms", "backward_ms", "share", "gflop", "rate", "of_sgemm"}]}}.""")
    parser.add_argument("--shapes", default="a,b,c", metavar="a,b,c", help="which of them (default all)")
    parser.add_argument("--threads", default="1,2", metavar="1,2", help="thread counts (default 1,2)")
    parser.add_argument("--profile", action="store_true", help="instead: every op alone, its milliseconds, share and rate")
    parser.add_argument("--plot", type=_path, metavar="FILE.png", help="draw the profile of the first shape")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.set_defaults(command=_bench)


def _bench(arguments):
    from .progress import phase
    from .report import bench

    shapes, threads = arguments.shapes.split(","), arguments.threads.split(",")
    for shape in shapes:
        if shape not in bench.SHAPES:
            raise InputError(f"--shapes must name some of {', '.join(bench.SHAPES)}, got {shape!r:.60}")
    for count in threads:
        if not (count.isdecimal() and len(count) < 5 and 1 <= int(count) <= MAX_THREADS):
            raise InputError(f"--threads must hold whole numbers from 1 to {MAX_THREADS}, got {count!r:.60}")
    if arguments.plot:
        from .report.plot import check_picture

        check_picture(arguments.plot)
    if arguments.profile or arguments.plot:
        with phase(f"timing every op at shape {', '.join(shapes)}"):
            rows = {shape: bench.profile(shape, int(threads[0])) for shape in shapes}
        if arguments.plot:
            from .report.plot import plot_profile

            plot_profile(rows[shapes[0]], arguments.plot, f"one training step, shape {shapes[0]}, {threads[0]} thread(s)")
        texts = [f"shape {shape}, {threads[0]} thread(s)\n{bench.format_profile(table)}" for shape, table in rows.items()]
        print(json.dumps({"profile": rows}, indent=1) if arguments.json else "\n\n".join(texts))
        return
    result = bench.bench(shapes, [int(count) for count in threads], progress=lambda text: print(f"\r\033[K{text}", end="", file=sys.stderr))
    print("\r\033[K", end="", file=sys.stderr)
    print(json.dumps(result, indent=1) if arguments.json else bench.format_bench(result))


def main(argv=None):
    """Run one command. Returns the exit status: 0, 2 for bad input, 130 after Ctrl-C."""
    about = "LLaMA-1 from scratch in NumPy, every gradient by hand."
    parser = Parser(prog="python -m minillama", formatter_class=Formatter, description=about)
    parser.add_argument("--version", action="version", version=f"minillama {__version__}")
    parser.set_defaults(command=lambda _: parser.print_help() or 2)
    commands = parser.add_subparsers(metavar="COMMAND")
    for add in (_add_train, _add_generate, _add_look, _add_eval, _add_runs, _add_compare, _add_export, _add_import, _add_tokenizer,
                _add_info, _add_gradcheck, _add_bench):
        add(commands)
    for stream in (sys.stdout, sys.stderr):                      # a character that the terminal cannot show is written as its number
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    arguments = parser.parse_args(argv)
    try:
        if signal.getsignal(signal.SIGINT) is _leave:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return arguments.command(arguments) or 0
    except BrokenPipeError:                                      # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Told:                                                 # by another process
        return 2
    except Exception as error:
        if (words := sentence(error)) is None:
            raise
        print(f"error: {words}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
