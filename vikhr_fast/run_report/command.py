"""`vikhr-fast report`: tells by its files what a directory is, and makes the page for that."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, NamedTuple

from tyro.conf import Positional

from vikhr_fast.errors import InputError
from vikhr_fast.names import distinct_names
from vikhr_fast.report import Page, write_report

PAGE = "report.html"


@dataclass(frozen=True)
class Report:
    """Writes one HTML page about what a command left in a directory, whichever command that was.

    Tokenizers, adapted models, corpora and their stages, token shards, training runs (finished or not, tuning too),
    conversations, reward models, evaluations, ablations, the demo. Several trainings, evaluations or tokenizers are
    compared, and so are the answers of several models: files that `generate batch` wrote, or a directory of them.
    The page holds everything in itself and asks nothing of the network.
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
    page: Callable[[dict[str, Path]], Page]
    """Of directories by the names to show."""
    has_several: bool = False


def report_run(options: Report) -> Path:
    """Writes the page and returns where it is.

    Raises:
        InputError: nothing that there is a page for, a damaged directory, or several that don't go together.
    """
    if not options.paths:
        raise InputError("report: name a directory")
    paths = dict(zip(distinct_names(options.paths), options.paths, strict=True))
    kind, *others = dict.fromkeys(map(_kind_of, options.paths))
    if others:
        names = ", ".join(one.name for one in (kind, *others))
        raise InputError(f"{' '.join(map(str, options.paths))}: of different kinds ({names}); give those of one")
    if len(paths) > 1 and not kind.has_several:
        raise InputError(f"{' '.join(map(str, options.paths))}: {kind.name}: one at a time")
    output = options.output
    if output is None:
        if len(paths) > 1 or not options.paths[0].is_dir():
            raise InputError("--output: name the page to write; only that of a single directory has a place of its own")
        output = options.paths[0] / PAGE
    try:
        page = kind.page(paths)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise InputError(f"{options.paths[0]}: damaged: not what {kind.name} holds: {error!r}") from None
    write_report(output, *page)
    return output


def _kind_of(path: Path) -> _Kind:
    from vikhr_fast.run_report.answers import is_answers

    if not path.exists():
        raise InputError(f"{path}: no such directory")
    if path.is_dir():
        for kind in _kinds():
            if (path / kind.mark).exists():
                return kind
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if any(map(is_answers, files)):
        return _answers()
    looked = ", ".join(f"{kind.mark} ({kind.name})" for kind in _kinds())
    raise InputError(f"{path}: nothing to report on; looked for {looked}, and answers of `generate batch` (.jsonl)")


@cache
def _kinds() -> tuple[_Kind, ...]:
    """Those of directories, the more particular ones first."""
    from vikhr_fast.ablate.page import ablation_page
    from vikhr_fast.ablate.results import ABLATION
    from vikhr_fast.corpus.layout import COLLECTED
    from vikhr_fast.corpus.mix import TRAIN_TOML
    from vikhr_fast.corpus.stats import corpus_page
    from vikhr_fast.corpus.token_shards import MANIFEST_NAME
    from vikhr_fast.demo.page import demo_page
    from vikhr_fast.demo.paths import DemoPaths
    from vikhr_fast.evaluate.command import RESULTS
    from vikhr_fast.instruct.convert import CONVERSATIONS
    from vikhr_fast.instruct.reward import SETTINGS
    from vikhr_fast.instruct.reward_report import reward_page
    from vikhr_fast.run_report.conversations import conversations_page
    from vikhr_fast.run_report.evaluation import evaluation_page
    from vikhr_fast.run_report.stages import shards_page, stage_page
    from vikhr_fast.run_report.tokenizer import adapted_page, tokenizer_page
    from vikhr_fast.run_report.training import training_page
    from vikhr_fast.tokenizer.export import MODEL_NAME
    from vikhr_fast.train.inputs import ADAPTATION
    from vikhr_fast.train.metrics import METRICS

    def single(page: Callable[[Path], Page]) -> Callable[[dict[str, Path]], Page]:
        return lambda paths: page(*paths.values())

    return (
        _Kind("a demo", DemoPaths(Path()).run(0, "cpt").as_posix(), single(demo_page)),
        _Kind("an ablation", ABLATION, single(ablation_page)),
        _Kind("a training run", METRICS, training_page, has_several=True),
        _Kind("an evaluation", RESULTS, evaluation_page, has_several=True),
        _Kind("a corpus", COLLECTED, single(corpus_page)),
        _Kind("a reward model", SETTINGS, single(reward_page)),
        _Kind("an adapted model", ADAPTATION, single(adapted_page)),
        _Kind("conversations", CONVERSATIONS, single(conversations_page)),
        _Kind("token shards by source", TRAIN_TOML, single(shards_page)),
        _Kind("a stage of a corpus", MANIFEST_NAME, single(stage_page)),
        _Kind("a tokenizer", MODEL_NAME, tokenizer_page, has_several=True),
    )


@cache
def _answers() -> _Kind:
    from vikhr_fast.run_report.answers import answers_page

    return _Kind("answers", "*.jsonl", answers_page, has_several=True)
