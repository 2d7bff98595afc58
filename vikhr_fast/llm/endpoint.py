"""An OpenAI-compatible chat endpoint: retries, a rate limit, and a log of answers, so that none is asked for twice."""

import asyncio
import fcntl
import hashlib
import json
import os
import re
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from vikhr_fast.corpus.settings import EndpointSettings
from vikhr_fast.corpus.stage import counted, write_notes
from vikhr_fast.data.documents import MANIFEST
from vikhr_fast.errors import InputError
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import atomic_directory, refuse_existing, sync_directory, write_json

FAILED = "failed.jsonl"
"""What the endpoint gave no valid answer about, and why."""

Messages = list[dict[str, Any]]
Ask = Callable[..., Awaitable[Any]]
"""`ask(messages, validate, **more)`: what `validate` makes of the answer's text, where it raises ValueError if that is
not what was asked for; `more` are further fields of the request."""

_Row = TypeVar("_Row")

_REFUSED = {
    **dict.fromkeys((301, 302, 303, 307, 308), "the endpoint is elsewhere"),
    401: "the key is refused",
    402: "the account must be paid for",
    403: "the key may not do that",
    404: "no such endpoint or model",
}
_SHOWN_CHARACTERS = 200
_LONGEST_WAIT = 60.0
_FAILURES = 20  # without a single answer before them


class GivenUpError(Exception):
    """The endpoint answered this request, but never as it must."""


class _TryAgainError(Exception):
    def __init__(self, reason: str, wait: float = 0.0, is_answer: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.is_answer = wait, is_answer


class AnswerLog:
    """Every answer as a line of JSON, on disk before it is used; what a killed process left half-written is cut off.

    Raises:
        InputError: another process writes to it, or it is something else.
    """

    def __init__(self, path: Path) -> None:
        self._entries: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InputError(f"{path}: another process writes to it; wait for its end or stop it") from None
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
                key, is_final = entry["request"], entry["final"]
            except (ValueError, TypeError, KeyError):
                raise InputError(f"{path}: line {number}: not an answer; remove the file or the line") from None
            if is_final:
                self._entries[key] = entry
            end += len(line)
        self._file.truncate(end)
        sync_directory(path.parent)

    def __enter__(self) -> "AnswerLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def final(self, request: str) -> dict[str, Any] | None:
        """What a request came to, if it is through."""
        return self._entries.get(request)

    def add(self, entry: dict[str, Any]) -> None:
        """Writes an answer."""
        self._file.write((json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
        self._file.flush()
        os.fsync(self._file.fileno())
        if entry["final"]:
            self._entries[entry["request"]] = entry


class ChatEndpoint:
    """Asks the endpoint. The key, of the environment, goes into the request's header and nowhere else.

    Raises:
        InputError: no key for an endpoint that wants one, a key or an URL that cannot be, or an URL with a secret.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        try:
            url = httpx.URL(settings.base_url)
        except httpx.InvalidURL:  # it may hold a secret, and so may the reason
            raise InputError("base_url: not an URL; it must be as https://HOST/v1") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise InputError("base_url: must begin with http:// or https:// and a host")
        if url.port is not None and not 0 < url.port < 1 << 16:
            raise InputError(f"base_url: port {url.port}: must be 1 to 65535")
        if url.userinfo or url.query:
            raise InputError("base_url: must hold no user, password or query; the key goes into the environment")
        self._key = os.environ.get(settings.key_variable, "").strip()  # of a file, it may end in a newline
        if not self._key and settings.base_url == EndpointSettings.base_url:
            raise InputError(f"{settings.key_variable}: not in the environment; put the endpoint's key there")
        if not re.fullmatch("[!-~]*", self._key):
            raise InputError(
                "the endpoint's key: must be ASCII without spaces; see what is in its environment variable"
            )
        self.settings = settings
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self.client = httpx.AsyncClient(timeout=settings.timeout_seconds, headers=headers)
        """To be opened around all that is asked."""
        self._url = f"{settings.base_url.rstrip('/')}/chat/completions"
        self._backoff = wait_random_exponential(multiplier=settings.backoff_seconds, max=_LONGEST_WAIT)
        self._next = 0.0
        self._under_way: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def ask(self, log: AnswerLog, messages: Messages, validate: Callable[[str], Any], **more: Any) -> Any:
        """As `Ask`: the answer that is in the log, or a new one.

        Raises:
            GivenUpError: none of the tries gave a valid answer, now or earlier.
            InputError: the endpoint refuses the key or the model, or does not answer.
        """
        body = {"model": self.settings.model, "temperature": 0, "messages": messages, **more}
        request = request_hash(body)
        # Who asks the same meanwhile waits, and then finds the answer in the log.
        async with self._under_way.setdefault(request, asyncio.Lock()):
            if entry := log.final(request):
                if entry["error"]:
                    raise GivenUpError(entry["error"])
                return validate(entry["answer"])
            tries = AsyncRetrying(
                stop=stop_after_attempt(self.settings.attempts),
                wait=self._wait,
                retry=retry_if_exception_type(_TryAgainError),
                reraise=True,
            )
            try:
                return await tries(self._try, body, validate, log, request)
            except _TryAgainError as error:
                if not error.is_answer:
                    reason = f"{error} ({self.settings.attempts} tries)"
                    raise InputError(f"{self._url}: {reason}; run the same command again to go on") from None
                self._give_up(log, request, str(error))

    def _give_up(self, log: AnswerLog, request: str, reason: str) -> NoReturn:
        log.add({"request": request, "final": True, "answer": None, "error": reason, "usage": None})
        raise GivenUpError(reason)

    async def _try(self, body: dict[str, Any], validate: Callable[[str], Any], log: AnswerLog, request: str) -> Any:
        await self._pace()
        try:
            response = await self.client.post(self._url, json=body)
        except httpx.TimeoutException:
            raise _TryAgainError(f"no answer in {self.settings.timeout_seconds:g} seconds") from None
        except httpx.TransportError as error:
            raise _TryAgainError(self._hidden(str(error) or type(error).__name__)) from None
        if response.status_code in (408, 409, 425, 429) or response.status_code >= 500:
            raise _TryAgainError(f"status {response.status_code}", _retry_after(response))
        if response.status_code in _REFUSED:
            reason = f"status {response.status_code}: {_REFUSED[response.status_code]}"
            raise InputError(f"{self._url}: {reason}; see the key, base_url and model")
        if response.status_code != 200:
            shown = " ".join(self._hidden(response.text).split())[:_SHOWN_CHARACTERS]
            self._give_up(log, request, f"status {response.status_code}: {shown}")
        answer, usage = None, None
        try:
            content = response.json()
            answer, usage = self._hidden(content["choices"][0]["message"]["content"]), content.get("usage")
            answer.encode("utf-8")  # JSON can spell half of a surrogate pair
            value = validate(answer)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            reason = f"not a valid answer: {' '.join(self._hidden(str(error)).split())[:_SHOWN_CHARACTERS]}"
            if not isinstance(answer, str):
                answer = self._hidden(response.text)
            log.add({"request": request, "final": False, "answer": answer, "error": reason, "usage": usage})
            raise _TryAgainError(reason, is_answer=True) from None
        log.add({"request": request, "final": True, "answer": answer, "error": None, "usage": usage})
        return value

    async def _pace(self) -> None:
        """Waits for this request's turn under the rate limit."""
        now = time.monotonic()
        self._next = max(self._next, now)
        wait, self._next = self._next - now, self._next + 60 / self.settings.requests_per_minute
        await asyncio.sleep(wait)

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked_for = error.wait if isinstance(error, _TryAgainError) else 0.0
        return max(min(asked_for, _LONGEST_WAIT), self._backoff(state))

    def _hidden(self, text: str) -> str:
        """The text without the key, which some servers repeat."""
        return text.replace(self._key, "[key]") if self._key else text


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
    with AnswerLog(output.with_name(f"{output.name}.answers.jsonl")) as log, counted(stage, len(rows)) as advance:
        questions = [partial(ask_of, row, partial(endpoint.ask, log)) for row in rows]
        answers = asyncio.run(_ask_all(endpoint, questions, advance))
    done = [answer for answer in answers if isinstance(answer, dict)]
    pairs = zip(rows, answers, strict=True)
    failed = [{**identity(row), "reason": answer} for row, answer in pairs if isinstance(answer, str)]
    if not done:
        raise InputError(f"{output}: not one valid answer, the last: {answers[-1]}")
    with atomic_directory(output) as directory:
        write_notes(directory / file, done)
        write_notes(directory / FAILED, failed)
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


def request_hash(body: dict[str, Any]) -> str:
    """What tells requests apart."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode("ascii")).hexdigest()


def _retry_after(response: httpx.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("retry-after", 0)))
    except ValueError:  # a date: the backoff will do
        return 0.0
