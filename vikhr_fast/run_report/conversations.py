"""The page of conversations: what a stage of `instruct` kept, what it left out and why, and how they read."""

from collections import Counter
from pathlib import Path
from typing import Any

from vikhr_fast.corpus.chat import FAILED
from vikhr_fast.instruct.conversation import read_conversations
from vikhr_fast.instruct.convert import CONVERSATIONS, REJECTED
from vikhr_fast.instruct.dedup import REMOVED
from vikhr_fast.instruct.filter import SCORES
from vikhr_fast.report import Line, Page, Section, Table, line_plot
from vikhr_fast.train.metrics import read_lines

_SHOWN = 6
_SHOWN_CHARACTERS = 600
_REASONS = 20
_QUANTILES = 50


def conversations_page(directory: Path) -> Page:
    """The page of a directory that a stage of `instruct` wrote."""
    conversations = list(read_conversations([directory / CONVERSATIONS]))
    counts: dict[str, Counter[str]] = {}
    for one in conversations:
        turns = sum(message.role == "assistant" for message in one.messages)
        answers = sum(len(message.content) for message in one.messages if message.role == "assistant")
        counts.setdefault(one.source, Counter()).update(
            {"conversations": 1, "answers": turns, "characters": answers, f"language {one.language}": 1}
        )
    languages = sorted({name for own in counts.values() for name in own if name.startswith("language ")})
    rows = tuple(
        (
            source,
            f"{own['conversations']:,}",
            f"{own['answers'] / own['conversations']:.2f}",
            f"{own['characters'] / own['answers']:,.0f}",
            *(f"{own[language]:,}" for language in languages),
        )
        for source, own in counts.items()
    )
    header = ("source", "conversations", "answers in one", "characters in an answer", *languages)
    sections = [Section("Sources", parts=(Table("Conversations that are left.", header, rows),))]
    sections += _left_out(directory)
    if scores := read_lines(directory / SCORES):
        sections.append(_scores(scores))
    sections.append(_samples([(one.source, one.prompt, one.answer) for one in conversations]))
    said = f"{len(conversations):,} conversations of {len(counts):,} sources."
    return Page(f"Conversations {directory.resolve().name}", said, sections)


def _left_out(directory: Path) -> list[Section]:
    """What the stage's side file says."""
    reasons: Counter[str] = Counter()
    for name in (REJECTED, REMOVED, FAILED):
        for line in read_lines(directory / name):
            reasons[str(line.get("reason") or f"by {line['by']}")] += 1
    if not reasons:
        return []
    rows = tuple((reason, f"{count:,}") for reason, count in reasons.most_common(_REASONS))
    caption = f"The commonest reasons; {sum(reasons.values()):,} in all."
    return [Section("Left out", parts=(Table(caption, ("reason", "how many"), rows),))]


def _scores(scores: list[dict[str, Any]]) -> Section:
    """Of the reward model, by source."""
    sources = dict.fromkeys(line["source"] for line in scores)
    rows, lines = [], []
    for number, source in enumerate(sources):
        own = sorted(line["score"] for line in scores if line["source"] == source)
        kept = sum(line["kept"] for line in scores if line["source"] == source)
        rows.append((source, f"{len(own):,}", f"{kept:,}", f"{own[len(own) // 2]:.3f}"))
        steps = min(_QUANTILES, len(own))
        places = [round(step * (len(own) - 1) / max(1, steps - 1)) for step in range(steps)]
        shares = [100 * (place + 0.5) / len(own) for place in places]
        lines.append(Line(source, [own[place] for place in places], shares, colour=number, style=number // 5))
    caption = "Share of each source's conversations whose score is at most this."
    said = "; ".join(f"{source}: median {median}" for source, _, _, median in rows)
    return Section(
        "Scores of the reward model",
        parts=(
            Table("By source.", ("source", "scored", "kept", "median"), tuple(rows)),
            line_plot(caption, f"{caption} {said}.", "score", "% of conversations", lines),
        ),
    )


def _samples(texts: list[tuple[str, str, str]]) -> Section:
    places = dict.fromkeys(number * len(texts) // _SHOWN for number in range(_SHOWN))
    rows = tuple(tuple(map(_shortened, texts[place])) for place in places)
    return Section("How they read", parts=(Table("From all over the file.", ("source", "question", "answer"), rows),))


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} …"
