"""The `vikhr-fast` command: one subcommand a stage of the paper."""

import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast, get_args

import rich
import tyro
from tyro.conf import arg
from tyro.extras import SubcommandApp

from vikhr_fast.ablate.command import Ablate
from vikhr_fast.adapt import Adapt
from vikhr_fast.config import TrainConfig, config_values, config_with_gaps, read_toml, train_config
from vikhr_fast.console import LogLevel, configure_logging
from vikhr_fast.corpus.annotate import Annotate
from vikhr_fast.corpus.build import Build
from vikhr_fast.corpus.collect import Collect
from vikhr_fast.corpus.decontaminate import Decontaminate
from vikhr_fast.corpus.dedup_stage import Dedup
from vikhr_fast.corpus.mix import Mix
from vikhr_fast.corpus.quality_filter import Filter
from vikhr_fast.corpus.scrub import Scrub
from vikhr_fast.corpus.shard import Shard
from vikhr_fast.corpus.stats import Stats
from vikhr_fast.corpus.train_filter import TrainFilter
from vikhr_fast.demo import Demo
from vikhr_fast.doctor import Doctor
from vikhr_fast.errors import ExitCode, InputError, RankLostError
from vikhr_fast.evaluate.command import Evaluate
from vikhr_fast.evaluate.translate import TranslateQuestions
from vikhr_fast.export import Export
from vikhr_fast.generate.batch import GenerateBatch
from vikhr_fast.generate.chat import GenerateChat
from vikhr_fast.generate.compare import GenerateCompare
from vikhr_fast.instruct.convert import Convert
from vikhr_fast.instruct.dedup import DedupConversations
from vikhr_fast.instruct.filter import FilterConversations
from vikhr_fast.instruct.shard import ShardConversations
from vikhr_fast.instruct.train_reward import TrainReward
from vikhr_fast.instruct.translate import Translate
from vikhr_fast.merge import Merge
from vikhr_fast.plan import Plan
from vikhr_fast.run_report.command import Report
from vikhr_fast.tokenizer.export import ExportTokenizer
from vikhr_fast.tokenizer.extend import ExtendTokenizer
from vikhr_fast.tokenizer.report import ReportTokenizers
from vikhr_fast.tokenizer.train import TrainTokenizer
from vikhr_fast.tokenizer.verify import VerifyTokenizer

_DESCRIPTION = """Adapts an English Mistral model to Russian, or to any other language (arXiv 2405.13929).

The pipeline, a command a stage; each reads files and writes files:

  1. vikhr-fast tokenizer train   a SentencePiece vocabulary for the new language (or extend: the base's, and more)
  2. vikhr-fast adapt             embeddings and LM head rebuilt for it
  3. vikhr-fast corpus build      sources to clean token shards, by a corpus.toml (or corpus shard: text as it is)
  4. vikhr-fast train             all weights, CE + KL to the frozen model (torchrun for several GPUs)
  5. vikhr-fast instruct ...      instruction sets converted, deduplicated, filtered, sharded; then train again
  6. vikhr-fast generate chat     talk with the result (batch: from file to file; compare: models side by side)
  7. vikhr-fast evaluate          benchmarks, perplexity and bits per byte
  8. vikhr-fast ablate            what each choice buys: the paper's tables 7 to 10

`vikhr-fast report` makes a page of whatever a command left in a directory.
`vikhr-fast merge` interpolates between two models, `vikhr-fast export` makes one of a run's checkpoint.
`vikhr-fast plan` says what a run would need and cost.
Start with `vikhr-fast demo`: all of it in minutes on a CPU. `vikhr-fast doctor` checks the machine.

Everywhere: --log-level debug|info|warning|error; --tyro-print-completion bash|zsh prints shell completion.
Exit codes: 0 done, 1 a bug, 2 wrong flags, 3 bad input, 4 no space left, 130 Ctrl-C, 143 SIGTERM (checkpoint saved)."""


@dataclass(frozen=True)
class _Train:
    settings: TrainConfig
    dry_run: bool
    print_config: bool
    replay_incident: int | None


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits with one of `errors.ExitCode`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    level = "info"
    try:
        level = _take_log_level(arguments)
        configure_logging(level)
        sys.exit(_run(_parse(arguments)))
    except InputError as error:
        _fail(ExitCode.BAD_INPUT, str(error), level)
    except RankLostError as error:
        _fail(ExitCode.RANK_LOST, str(error), level)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.SUCCESS)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f"{error.filename}: " if error.filename else ""
            _fail(
                ExitCode.NO_SPACE, f"{where}no space left on the disk; free some and run the same command again", level
            )
        if error.filename is None:
            raise
        _fail(ExitCode.BAD_INPUT, f"{error.filename}: {error.strerror}", level)
    except KeyboardInterrupt:
        _fail(ExitCode.INTERRUPTED, "interrupted", level)


def _parse(arguments: list[str]) -> Any:
    application = SubcommandApp()
    tokenizer, corpus, instruct, generate = (SubcommandApp() for _ in range(4))
    tokenizer.command(name="train")(TrainTokenizer)
    tokenizer.command(name="extend")(ExtendTokenizer)
    tokenizer.command(name="export")(ExportTokenizer)
    tokenizer.command(name="verify")(VerifyTokenizer)
    tokenizer.command(name="report")(ReportTokenizers)
    corpus.command(name="collect")(Collect)
    corpus.command(name="dedup")(Dedup)
    corpus.command(name="scrub")(Scrub)
    corpus.command(name="decontaminate")(Decontaminate)
    corpus.command(name="annotate")(Annotate)
    corpus.command(name="train-filter")(TrainFilter)
    corpus.command(name="filter")(Filter)
    corpus.command(name="mix")(Mix)
    corpus.command(name="stats")(Stats)
    corpus.command(name="build")(Build)
    corpus.command(name="shard")(Shard)
    instruct.command(name="convert")(Convert)
    instruct.command(name="translate")(Translate)
    instruct.command(name="dedup")(DedupConversations)
    instruct.command(name="train-reward")(TrainReward)
    instruct.command(name="filter")(FilterConversations)
    instruct.command(name="shard")(ShardConversations)
    generate.command(name="chat")(GenerateChat)
    generate.command(name="batch")(GenerateBatch)
    generate.command(name="compare")(GenerateCompare)
    application.command(tokenizer, name="tokenizer", help="The vocabulary of the new language (section 3.1).")
    application.command(name="adapt")(Adapt)
    application.command(corpus, name="corpus", help="From text to token shards (section 3.2).")
    application.command(
        instruct, name="instruct", help="From instruction sets to conversations to train on (section 3.3)."
    )
    application.command(name="train")(_train_with_defaults(arguments))
    application.command(generate, name="generate", help="What a model answers.")
    if arguments[:2] == ["evaluate", "translate"]:  # elsewhere what follows is a model
        evaluate = SubcommandApp()
        evaluate.command(name="translate")(TranslateQuestions)
        application.command(evaluate, name="evaluate", help="Benchmarks for other languages.")
    else:
        application.command(name="evaluate")(Evaluate)
    application.command(name="ablate")(Ablate)
    application.command(name="report")(Report)
    application.command(name="merge")(Merge)
    application.command(name="export")(Export)
    application.command(name="plan")(Plan)
    application.command(name="doctor")(Doctor)
    application.command(name="demo")(Demo)
    return application.cli(prog="vikhr-fast", description=_DESCRIPTION, args=arguments)


def _train_with_defaults(arguments: list[str]) -> Callable[..., Any]:
    """The train command, its flags' defaults taken from the file or preset that --config names."""
    path = _value_of("--config", arguments) if arguments[:1] == ["train"] else None
    values = read_toml(Path(path)) if path else {}
    default = config_with_gaps(values, path or "", tyro.MISSING)

    def train(
        settings: Annotated[TrainConfig, arg(name="")] = default,
        config: Path | None = None,  # noqa: ARG001  its values are `default` by now
        dry_run: bool = False,
        print_config: bool = False,
        replay_incident: int | None = None,
    ) -> _Train:
        """Trains all weights with CE + KL (paper, section 3.2). Start it under torchrun for several GPUs.

        An interrupted run is resumed by the same command, bit for bit.

        Args:
            settings: the configuration.
            config: TOML file, or the name of a preset; flags override it.
            dry_run: Check inputs and settings, say what would be done, and stop.
            print_config: Print the resolved settings as JSON and stop.
            replay_incident: Run the sequences of this skipped step (its number in OUTPUT/incidents.jsonl) one by one
                from the last checkpoint before it, show their losses and texts, and stop.
        """
        return _Train(train_config(asdict(settings), "train"), dry_run, print_config, replay_incident)

    return train


def _run(options: Any) -> int:
    """Runs the command whose options these are; imports what it needs only now, so that --help is quick."""
    match options:
        case TrainTokenizer():
            from vikhr_fast.tokenizer.train import train_tokenizer

            train_tokenizer(options)
        case ExtendTokenizer():
            from vikhr_fast.tokenizer.extend import extend_tokenizer

            print(json.dumps(extend_tokenizer(options), indent=2))
        case ExportTokenizer():
            from vikhr_fast.tokenizer.export import export

            export(options)
        case VerifyTokenizer():
            from vikhr_fast.tokenizer.verify import verify

            print(json.dumps({**verify(options), "differences": 0}, indent=2))
        case ReportTokenizers():
            from vikhr_fast.tokenizer.report import print_report, report_tokenizers

            print_report(report_tokenizers(options))
        case Adapt():
            from vikhr_fast.adapt import adapt

            print(json.dumps(adapt(options), ensure_ascii=False, indent=2))
        case Collect():
            from vikhr_fast.corpus.collect import collect

            collect(options)
        case Dedup():
            from vikhr_fast.corpus.dedup_stage import dedup

            dedup(options)
        case Scrub():
            from vikhr_fast.corpus.scrub import scrub

            scrub(options)
        case Decontaminate():
            from vikhr_fast.corpus.decontaminate import decontaminate

            decontaminate(options)
        case Annotate():
            from vikhr_fast.corpus.annotate import annotate

            annotate(options)
        case TrainFilter():
            from vikhr_fast.corpus.train_filter import train_filter

            train_filter(options)
        case Filter():
            from vikhr_fast.corpus.quality_filter import filter_corpus

            filter_corpus(options)
        case Mix():
            from vikhr_fast.corpus.mix import mix

            mix(options)
        case Stats():
            from vikhr_fast.corpus.stats import stats

            stats(options)
        case Build():
            from vikhr_fast.corpus.build import build

            build(options)
        case Shard():
            from vikhr_fast.corpus.shard import write_shards

            write_shards(options)
        case Convert():
            from vikhr_fast.instruct.convert import convert

            convert(options)
        case Translate():
            from vikhr_fast.instruct.translate import translate

            translate(options)
        case DedupConversations():
            from vikhr_fast.instruct.dedup import dedup_conversations

            dedup_conversations(options)
        case TrainReward():
            from vikhr_fast.instruct.train_reward import train_reward

            train_reward(options)
        case FilterConversations():
            from vikhr_fast.instruct.filter import filter_conversations

            filter_conversations(options)
        case ShardConversations():
            from vikhr_fast.instruct.shard import shard_conversations

            shard_conversations(options)
        case GenerateChat():
            from vikhr_fast.generate.chat import chat

            chat(options)
        case GenerateBatch():
            from vikhr_fast.generate.batch import generate_batch

            generate_batch(options)
        case GenerateCompare():
            from vikhr_fast.generate.compare import compare

            compare(options)
        case _Train():
            return _run_training(options)
        case Evaluate():
            from vikhr_fast.evaluate.command import evaluate

            evaluate(options)
        case Ablate():
            from vikhr_fast.ablate.command import ablate

            ablate(options, _parse, main)
        case Report():
            from vikhr_fast.run_report.command import report_run

            print(report_run(options))
        case TranslateQuestions():
            from vikhr_fast.evaluate.translate import translate_questions

            translate_questions(options)
        case Merge():
            from vikhr_fast.merge import merge

            merge(options)
        case Export():
            from vikhr_fast.export import export_checkpoint

            print(export_checkpoint(options))
        case Plan():
            from vikhr_fast.plan.command import plan

            plan(options)
        case Doctor():
            from vikhr_fast.doctor import doctor

            return doctor(options)
        case Demo():
            from vikhr_fast.demo.pipeline import run_demo

            run_demo(options)
    return ExitCode.SUCCESS


def _run_training(options: _Train) -> int:
    if options.print_config:
        print(json.dumps(config_values(options.settings), indent=2))
        return ExitCode.SUCCESS
    from vikhr_fast.train.inputs import describe, open_inputs
    from vikhr_fast.train.loop import train

    if options.dry_run:
        print(describe(options.settings, open_inputs(options.settings), int(os.environ.get("WORLD_SIZE", 1))))
        return ExitCode.SUCCESS
    if options.replay_incident is not None:
        from vikhr_fast.train.replay import replay_incident, replay_table

        rich.print(replay_table(replay_incident(options.settings, options.replay_incident)))
        return ExitCode.SUCCESS
    model = train(options.settings)
    if int(os.environ.get("RANK", 0)) == 0:
        print(model)
    return ExitCode.SUCCESS


def _take_log_level(arguments: list[str]) -> LogLevel:
    """Removes --log-level from the arguments, wherever it stands; "info" where it doesn't."""
    given = any(argument.partition("=")[0] == "--log-level" for argument in arguments)
    value = _value_of("--log-level", arguments, remove=True) if given else "info"
    if value not in get_args(LogLevel):
        _fail(ExitCode.USAGE, f"--log-level {value}: must be one of {', '.join(get_args(LogLevel))}", "info")
    return cast(LogLevel, value)


def _value_of(flag: str, arguments: list[str], remove: bool = False) -> str | None:
    """The value of `--flag value` or `--flag=value`, None where neither stands."""
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name != flag:
            continue
        following = arguments[index + 1 : index + 2]
        if remove:
            del arguments[index : index + (1 if equals else 2)]
        return value if equals else next(iter(following), None)
    return None


def _fail(code: ExitCode, message: str, level: str) -> NoReturn:
    """One line on standard error; with --log-level debug the traceback before it."""
    if level == "debug" and sys.exc_info()[0] is not None:
        import traceback

        traceback.print_exc()
    among_others = "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    rank = f"rank {os.environ['RANK']}: " if among_others else ""
    sys.stderr.write(f"vikhr-fast: {rank}error: {' '.join(message.split())}\n")  # at once: ranks share the terminal
    sys.exit(code)
