"""`vikhr-fast report`: tells by its files what a directory is, and makes the page or the tables for that."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from tyro.conf import Positional

from vikhr_fast.errors import InputError
from vikhr_fast.io.html import Page, Table, print_tables, write_report
from vikhr_fast.io.names import distinct_names


@dataclass(frozen=True)
class Report:
    """Shows what a command left in a directory, whichever command that was.

    Training runs (finished or not, tuning too), evaluations, corpora, scrubbed documents, reward models, ablations and
    the demo get an HTML page, which holds everything in itself and asks nothing of the network; tokenizers, adapted
    models, conversations, token shards and other stages of a corpus get tables on standard output. Several trainings,
    evaluations or tokenizers are compared, and so are the answers of several models: files that `generate batch` wrote,
    or a directory of them.
    """

    paths: Annotated[tuple[Path, ...], Positional]
    """Directories of one kind; or answers (.jsonl) of several models to the same prompts."""
    output: Path | None = None
    """Page to write, replaced where it exists; DIRECTORY/report.html if not given."""


class _Kind(NamedTuple):
    """A kind of directory, and what tells it."""

    name: str
    mark: str
    """The file, or directory, that is in no other kind."""
    shown: Callable[..., Page | list[Table]]
    """Of a directory or, of a kind that can be compared, of directories by the names to show."""
    has_several: bool = False


def report_run(options: Report) -> Path | None:
    """Writes the page and returns where it is, or prints the tables.

    Raises:
        InputError: nothing that there is a report on, a damaged directory, or several that don't go together.
    """
    if not options.paths:
        raise InputError("report: name a directory")
    shown_paths = " ".join(map(str, options.paths))
    paths = dict(zip(distinct_names(options.paths), options.paths, strict=True))
    kind, *others = dict.fromkeys(map(_kind_of, options.paths))
    if others:
        names = ", ".join(one.name for one in (kind, *others))
        raise InputError(f"{shown_paths}: of different kinds ({names}); give those of one")
    if len(paths) > 1 and not kind.has_several:
        raise InputError(f"{shown_paths}: {kind.name}: one at a time")
    try:
        found = kind.shown(paths if kind.has_several else options.paths[0])
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{shown_paths}: damaged: not what {kind.name} holds: {error!r}") from None
    if isinstance(found, list):
        if options.output:
            raise InputError(f"--output {options.output}: of {kind.name} there is no page, only tables; leave it out")
        print_tables(found)
        return None
    if not options.output and len(paths) > 1:
        raise InputError("--output: name the page to write; only that of a single directory has a place of its own")
    output = options.output or options.paths[0] / "report.html"
    write_report(output, *found)
    return output


def _kind_of(path: Path) -> _Kind:
    from vikhr_fast.report.tables import answer_tables, is_answers

    if not path.exists():
        raise InputError(f"{path}: no such directory")
    kinds = _kinds()
    for kind in kinds:
        if (path / kind.mark).exists():
            return kind
    if any(map(is_answers, path.glob("*.jsonl") if path.is_dir() else [path])):
        return _Kind("answers", "*.jsonl", answer_tables, has_several=True)
    looked = ", ".join(f"{kind.mark} ({kind.name})" for kind in kinds)
    raise InputError(f"{path}: nothing to report on; looked for {looked}, and answers of `generate batch` (.jsonl)")


def _kinds() -> tuple[_Kind, ...]:
    """Those of directories, the more particular ones first."""
    from vikhr_fast.corpus.layout import COLLECTED
    from vikhr_fast.corpus.mix import TRAIN_TOML
    from vikhr_fast.corpus.scrub import REPLACED
    from vikhr_fast.corpus.stats import corpus_page, scrub_page
    from vikhr_fast.data.token_shards import MANIFEST_NAME
    from vikhr_fast.evaluate.command import RESULTS
    from vikhr_fast.experiments.ablate.page import ablation_page
    from vikhr_fast.experiments.demo.page import demo_page
    from vikhr_fast.experiments.demo.paths import DemoPaths
    from vikhr_fast.experiments.results import ABLATION
    from vikhr_fast.instruct.convert import CONVERSATIONS
    from vikhr_fast.instruct.reward import SETTINGS
    from vikhr_fast.instruct.reward_report import reward_page
    from vikhr_fast.report import tables
    from vikhr_fast.report.evaluation import evaluation_page
    from vikhr_fast.report.training import training_page
    from vikhr_fast.tokenizer.files import TOKENIZER, TOKENIZER_JSON
    from vikhr_fast.train.metrics import METRICS
    from vikhr_fast.train.reference import ADAPTATION

    return (
        _Kind("a demo", DemoPaths(Path()).run(0, "cpt").as_posix(), demo_page),
        _Kind("an ablation", ABLATION, ablation_page),
        _Kind("a training run", METRICS, training_page, has_several=True),
        _Kind("an evaluation", RESULTS, evaluation_page, has_several=True),
        _Kind("a corpus", COLLECTED, corpus_page),
        _Kind("a reward model", SETTINGS, reward_page),
        _Kind("an adapted model", ADAPTATION, tables.adapted_tables),
        _Kind("conversations", CONVERSATIONS, tables.conversation_tables),
        _Kind("token shards by source", TRAIN_TOML, tables.shard_tables),
        _Kind("scrubbed documents", REPLACED, scrub_page),
        _Kind("a stage of a corpus", MANIFEST_NAME, tables.stage_tables),
        _Kind("a tokenizer", TOKENIZER, tables.tokenizer_tables, has_several=True),
        _Kind("a byte-level tokenizer", TOKENIZER_JSON, tables.tokenizer_tables, has_several=True),
    )
