"""What instruction tuning did in the demo: the noise taken out, held-out answers, and answers before and after."""

import math
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vikhr_fast.chat.conversation import read_conversations
from vikhr_fast.chat.template import Message
from vikhr_fast.data.splits import is_within
from vikhr_fast.errors import InputError
from vikhr_fast.experiments.demo.paths import DemoPaths
from vikhr_fast.experiments.sample.text import ENGLISH, RUSSIAN
from vikhr_fast.instruct.convert import CONVERSATIONS
from vikhr_fast.instruct.reward import SETTINGS
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.io.guarded import read_json
from vikhr_fast.io.html import Section, Table
from vikhr_fast.train.metrics import VALIDATION as VALIDATION_NAME
from vikhr_fast.train.metrics import number

VALIDATION = 0.1
"""Share of the pairs that is held out."""
BEFORE, TUNED = "cpt", "instruct"
"""The runs of seed 0 that are compared."""
_QUESTIONS = {RUSSIAN: 4, ENGLISH: 2}
_ANSWER_TOKENS = 40


@dataclass(frozen=True)
class Exchange:
    """A held-out question and its answers."""

    question: str
    before: str
    after: str


@dataclass(frozen=True)
class Tuning:
    """All that the report says of instruction tuning."""

    noise: dict[str, int]
    """Pairs that were `written` and left as they are, their `copies` in other case and punctuation, and those with a
    `spoilt` answer; and how many of each are left after dedup and filter: `written_left`, ..."""
    reward_accuracy: float
    """Of the reward model on held-out pairs."""
    perplexity: dict[str, tuple[float, float]]
    """Of held-out answers before and after, by language; a token's, in the same vocabulary."""
    bits_per_byte: dict[str, tuple[float, float]]
    exchanges: tuple[Exchange, ...]


def collect_tuning(paths: DemoPaths) -> Tuning:
    """Reads the finished stages, and has both models answer.

    Raises:
        InputError: a stage's output is damaged.
    """
    path = paths.run(0, TUNED) / VALIDATION_NAME
    reward = paths.instructions / "reward" / SETTINGS
    try:
        first, *_, last = read_lines(path)
        sets = {language: (first["sets"][language], last["sets"][language]) for language in (RUSSIAN, ENGLISH)}
        accuracy = float(read_json(reward)["held_out"]["accuracy"])
        perplexity, bits_per_byte = (
            {name: (change(number(a[key])), change(number(b[key]))) for name, (a, b) in sets.items()}
            for key, change in (("loss", math.exp), ("bits_per_byte", float))
        )
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{path} or {reward}: damaged ({error!r}); delete what it is in and run it again") from None
    return Tuning(
        noise=_noise(paths.instructions),
        reward_accuracy=accuracy,
        perplexity=perplexity,
        bits_per_byte=bits_per_byte,
        exchanges=_exchanges(paths),
    )


def _noise(root: Path) -> dict[str, int]:
    """Compares what was planted with what is left, by the ids."""
    planted, left = (
        Counter(one.id.rpartition("/")[2] for one in read_conversations([path]))
        for path in (root / "planted" / "noisy.jsonl", root / "good" / CONVERSATIONS)
    )
    names = {"written": "written", "copies": "copy", "spoilt": "spoilt"}
    sides = (("", planted), ("_left", left))
    return {f"{name}{side}": count[kind] for name, kind in names.items() for side, count in sides}


def tuning_section(tuning: Tuning) -> Section:
    """What the page says."""
    noise = tuning.noise
    rows = tuple(
        (
            language.title(),
            *(f"{value:.2f}" for value in tuning.perplexity[language]),
            *(f"{value:.3f}" for value in tuning.bits_per_byte[language]),
        )
        for language in (RUSSIAN, ENGLISH)
    )
    header = ("language", "perplexity before", "after", "bits per byte before", "after")
    exchanges = tuple((one.question, one.before, one.after) for one in tuning.exchanges)
    return Section(
        "Instruction tuning",
        (
            f"CPT goes on with {noise['written_left']} of {noise['written']} hand-written questions and answers, "
            "trained on the answers alone. Among them noise was planted and taken out again: of "
            f"{noise['copies']} copies in other case and punctuation {noise['copies_left']} are left after dedup, of "
            f"{noise['spoilt']} spoilt answers (refusals, stammer, reversed words) {noise['spoilt_left']} after a "
            f"reward model, right about {tuning.reward_accuracy:.1%} of held-out pairs of the same kinds. It leaves "
            "out the worst tenth of each source, so "
            f"{noise['written'] - noise['written_left']} written pairs went, too.",
            "A model of this size learns the form of an answer and next to no facts.",
        ),
        (
            Table("Held-out answers given their questions, before and after tuning; lower is better.", header, rows),
            Table("Greedy answers to held-out questions.", ("question", "before", "after"), exchanges),
        ),
    )


def _exchanges(paths: DemoPaths) -> tuple[Exchange, ...]:
    from vikhr_fast.inference.engine import ChatEngine
    from vikhr_fast.inference.sampling import Sampling

    good = paths.instructions / "good" / CONVERSATIONS
    questions = [question for language, count in _QUESTIONS.items() for question in _held_out(good, language, count)]
    answers = []
    for name in (BEFORE, TUNED):
        engine = ChatEngine(paths.model(0, name), "cpu")
        prompts = [engine.prompt([Message("user", question)]) for question in questions]
        answers.append([answer.text for answer in engine.answer(prompts, Sampling(max_tokens=_ANSWER_TOKENS))])
    return tuple(Exchange(*one) for one in zip(questions, *answers, strict=True))


def _held_out(path: Path, source: str, count: int) -> list[str]:
    """The first questions of a source that were not trained on."""
    questions = (
        one.prompt for one in read_conversations([path]) if one.source == source and is_within(one.prompt, VALIDATION)
    )
    return list(islice(questions, count))
