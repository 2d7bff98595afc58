"""The commands, one a stage of the paper: a table of names, each imported when somebody asks for it.

Experiments read and run commands by their words, so that the table stands below them, though it names what is above.
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import tyro
from tyro.extras import SubcommandApp

_DESCRIPTION = """Adapts an English Mistral model to Russian, or to any other language (arXiv 2405.13929).

The pipeline, a command a stage; each reads files and writes files:

  1. vikhr-fast tokenizer train   a SentencePiece vocabulary for the new language (or extend: the base's, and more)
  2. vikhr-fast adapt             embeddings and LM head rebuilt for it
  3. vikhr-fast corpus build      sources to clean token shards, by a corpus.toml (or corpus shard: text as it is)
  4. vikhr-fast train             all weights, CE + KL to the frozen model (torchrun for several GPUs)
  5. vikhr-fast instruct ...      instruction sets converted, deduplicated, filtered, sharded; then train again
  6. vikhr-fast generate chat     talk with the result (or batch, compare; complete: go on with a text)
  7. vikhr-fast evaluate          benchmarks, perplexity and bits per byte
  8. vikhr-fast ablate            what each choice buys: the paper's tables 7 to 10

`vikhr-fast report` makes a page, or prints tables, of whatever a command left in a directory.
`vikhr-fast merge` interpolates between two models, `vikhr-fast export` makes one of a run's checkpoint.
`vikhr-fast plan` says what a run would need and cost.
Start with `vikhr-fast demo`: all of it in minutes on a CPU. `vikhr-fast doctor` checks the machine.

Everywhere: --log-level debug|info|warning|error; --tyro-print-completion bash|zsh prints shell completion.
`vikhr-fast --version` prints the version.
Exit codes: 0 done, 1 a bug, 2 wrong flags, 3 bad input, 4 no space left, 5 another rank died or hangs,
130 Ctrl-C, 143 SIGTERM (checkpoint saved)."""


class Command(NamedTuple):
    """A command, and where its options and its work are: imported when somebody asks for it.

    A module whose options aren't read from flags alone has a function `read_options`, called as `tyro.cli` is.
    """

    path: str
    module: str
    options: str
    function: str
    """Gets the options; gives what is to be printed, an exit code, or nothing."""


_GROUPS = {
    "tokenizer": "The vocabulary of the new language (section 3.1).",
    "corpus": "From text to token shards (section 3.2).",
    "instruct": "From instruction sets to conversations to train on (section 3.3).",
    "generate": "What a model says.",
}
COMMANDS = tuple(
    Command(*row)
    for row in (
        ("tokenizer train", "tokenizer.train", "TrainTokenizer", "train_tokenizer"),
        ("tokenizer extend", "tokenizer.extend", "ExtendTokenizer", "extend_tokenizer"),
        ("tokenizer export", "tokenizer.export", "ExportTokenizer", "export"),
        ("tokenizer verify", "chat.verify", "VerifyTokenizer", "verify"),
        ("tokenizer report", "tokenizer.report", "ReportTokenizers", "report_tokenizers"),
        ("adapt", "adapt.adapt", "Adapt", "adapt"),
        ("corpus collect", "corpus.collect", "Collect", "collect"),
        ("corpus dedup", "corpus.dedup_stage", "Dedup", "dedup"),
        ("corpus scrub", "corpus.scrub", "Scrub", "scrub"),
        ("corpus decontaminate", "corpus.decontaminate", "Decontaminate", "decontaminate"),
        ("corpus annotate", "corpus.annotate", "Annotate", "annotate"),
        ("corpus train-filter", "corpus.train_filter", "TrainFilter", "train_filter"),
        ("corpus filter", "corpus.quality_filter", "Filter", "filter_corpus"),
        ("corpus mix", "corpus.mix", "Mix", "mix"),
        ("corpus stats", "corpus.stats", "Stats", "stats"),
        ("corpus build", "corpus.build", "Build", "build"),
        ("corpus shard", "corpus.shard", "Shard", "write_shards"),
        ("instruct convert", "instruct.convert", "Convert", "convert"),
        ("instruct translate", "instruct.translate", "Translate", "translate"),
        ("instruct dedup", "instruct.dedup", "DedupConversations", "dedup_conversations"),
        ("instruct train-reward", "instruct.train_reward", "TrainReward", "train_reward"),
        ("instruct filter", "instruct.filter", "FilterConversations", "filter_conversations"),
        ("instruct shard", "instruct.shard", "ShardConversations", "shard_conversations"),
        ("train", "train.command", "Train", "run_training"),
        ("generate chat", "inference.chat", "GenerateChat", "chat"),
        ("generate complete", "inference.complete", "GenerateComplete", "complete"),
        ("generate batch", "inference.batch", "GenerateBatch", "generate_batch"),
        ("generate compare", "inference.compare", "GenerateCompare", "compare"),
        ("evaluate translate", "evaluate.translate", "TranslateQuestions", "translate_questions"),
        ("evaluate", "evaluate.command", "Evaluate", "evaluate"),
        ("ablate", "experiments.ablate.command", "Ablate", "ablate"),
        ("report", "report.command", "Report", "report_run"),
        ("merge", "publish.merge", "Merge", "merge"),
        ("export", "publish.export", "Export", "export_checkpoint"),
        ("plan", "plan.command", "Plan", "plan"),
        ("doctor", "doctor.command", "Doctor", "doctor"),
        ("demo", "experiments.demo.pipeline", "Demo", "run_demo"),
    )
)


def parse(words: Sequence[str]) -> tuple[Callable[[Any], object], Any]:
    """The function and the options that the words of a command stand for; SystemExit where they are wrong."""
    for command in COMMANDS:  # `evaluate translate` before `evaluate`, which a model follows
        path = command.path.split()
        if [word.replace("_", "-") for word in words[: len(path)]] == path:
            module = import_module(f"vikhr_fast.{command.module}")
            rest = list(words[len(path) :])
            read = getattr(module, "read_options", partial(tyro.cli, getattr(module, command.options)))
            return getattr(module, command.function), read(prog=f"vikhr-fast {command.path}", args=rest)
    _application().cli(prog="vikhr-fast", description=_DESCRIPTION, args=words)  # helps, or says what is wrong
    raise AssertionError("no command")


def _application() -> SubcommandApp:
    """All commands, for their help."""
    application = SubcommandApp()
    groups: dict[str, SubcommandApp] = {"": application}
    for command in COMMANDS:
        group, _, name = command.path.rpartition(" ")
        if group in _GROUPS and group not in groups:
            groups[group] = application.command(SubcommandApp(), name=group, help=_GROUPS[group])
        if group in groups:  # what follows `evaluate` is a model elsewhere
            options = getattr(import_module(f"vikhr_fast.{command.module}"), command.options)
            groups[group].command(options, name=name)
    return application
