"""One job for whoever asks an endpoint: ask about every row, keep every answer, write down what came of each."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from vikhr_fast.data.documents import MANIFEST
from vikhr_fast.errors import InputError
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import atomic_directory, refuse_existing, write_json, write_json_lines
from vikhr_fast.io.progress import progress_bar
from vikhr_fast.llm.answer_log import AnswerLog
from vikhr_fast.llm.endpoint import ChatEndpoint, GivenUpError
from vikhr_fast.llm.settings import EndpointSettings

FAILED = "failed.jsonl"
"""What the endpoint gave no valid answer about, and why."""

Ask = Callable[..., Awaitable[Any]]
"""`ask(messages, validate, **more)`: `ChatEndpoint.ask` with the log of answers filled in."""

_Row = TypeVar("_Row")
_FAILURES = 20  # without a single answer before them


def ask_of_each(
    stage: str,
    output: Path,
    file: str,
    rows: Iterable[_Row],
    settings: EndpointSettings,
    ask_of: Callable[[_Row, Ask], Awaitable[dict[str, Any]]],
    identity: Callable[[_Row], dict[str, Any]],
    *,
    noun: str,
    work: dict[str, Any] | None = None,
) -> None:
    """Asks about every row, and writes the directory OUTPUT, complete or not at all, from OUTPUT.answers.jsonl on.

    Args:
        stage: for log lines, and the manifest.
        output: the directory to make.
        file: the JSON lines in it of what became of the rows, beside `FAILED`.
        rows: what to ask about; read after the settings are found good.
        settings: the endpoint.
        ask_of: what becomes of a row; GivenUpError where there is no valid answer.
        identity: what `FAILED` says of a row besides the reason.
        noun: what the lines of `file` are.
        work: what the output depends on, for a manifest; without it there is none.

    Raises:
        InputError: the output exists, no key, an endpoint that refuses or does not answer, or not one valid answer.
    """
    refuse_existing(output)
    endpoint = ChatEndpoint(settings)
    rows = list(rows)
    with AnswerLog(output.with_name(f"{output.name}.answers.jsonl")) as log, progress_bar(stage, len(rows)) as advance:
        questions = [partial(ask_of, row, partial(endpoint.ask, log)) for row in rows]
        answers = asyncio.run(_ask_all(endpoint, questions, advance))
    done = [answer for answer in answers if isinstance(answer, dict)]
    pairs = zip(rows, answers, strict=True)
    failed = [{**identity(row), "reason": answer} for row, answer in pairs if isinstance(answer, str)]
    if not done:
        raise InputError(f"{output}: not one valid answer, the last: {answers[-1]}")
    with atomic_directory(output) as directory:
        write_json_lines(directory / file, done)
        write_json_lines(directory / FAILED, failed)
        if work:
            counts = {noun: len(done), "failed": len(failed)}
            write_json(directory / MANIFEST, {"stage": stage, "work": work, **counts})
    logger.info(f"{stage}: {output}: {len(done):,} {noun}, {len(failed):,} given up")


async def _ask_all(
    endpoint: ChatEndpoint, questions: Sequence[Callable[[], Awaitable[dict[str, Any]]]], advance: Callable[[int], None]
) -> list[dict[str, Any] | str]:
    """For each of the questions the answer, or why there is none."""
    answers: list[dict[str, Any] | str] = [""] * len(questions)
    numbers = iter(range(len(questions)))
    given_up, answered = 0, 0

    async def work() -> None:
        nonlocal given_up, answered
        for number in numbers:
            try:
                answers[number] = await questions[number]()
                answered += 1
            except GivenUpError as error:
                answers[number] = str(error)
                given_up += 1
                if given_up >= _FAILURES and not answered:
                    url = endpoint.settings.base_url
                    raise InputError(f"{url}: no valid answer to {given_up} questions: {error}") from None
            advance(1)

    async with endpoint.client:
        workers = [asyncio.create_task(work()) for _ in range(min(endpoint.settings.concurrency, len(questions)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
    return answers
