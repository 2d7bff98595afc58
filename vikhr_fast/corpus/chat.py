"""An OpenAI-compatible chat endpoint: retries, a rate limit, and a log of answers, so that none is asked for twice."""

import asyncio
import fcntl
import hashlib
import json
import os
import re
import time
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from vikhr_fast.corpus.settings import EndpointSettings
from vikhr_fast.errors import InputError
from vikhr_fast.files import sync_directory

Validate = Callable[[str], Any]
"""Makes JSON values of an answer; ValueError where it is not what was asked for."""

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

_Answer = TypeVar("_Answer")


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
        self._path = path
        self._entries: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> "AnswerLog":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InputError(f"{self._path}: another process writes to it; wait for its end or stop it") from None
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
                key, is_final = entry["request"], entry["final"]
            except (ValueError, TypeError, KeyError):
                raise InputError(f"{self._path}: line {number}: not an answer; remove the file or the line") from None
            if is_final:
                self._entries[key] = entry
            end += len(line)
        self._file.truncate(end)
        sync_directory(self._path.parent)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
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
    """Asks the endpoint. The key goes into the request's header and nowhere else.

    Args:
        base_url: up to and with /v1.
        key: None for an endpoint without keys.
        requests_per_minute, attempts, timeout_seconds, backoff_seconds: see `AnnotateStage`.

    Raises:
        InputError: an URL that cannot be, or that holds a secret; or a key that cannot be.
    """

    def __init__(
        self,
        base_url: str,
        key: str | None,
        *,
        requests_per_minute: float,
        attempts: int,
        timeout_seconds: float,
        backoff_seconds: float,
    ) -> None:
        try:
            url = httpx.URL(base_url)
        except httpx.InvalidURL:  # it may hold a secret, and so may the reason
            raise InputError("base_url: not an URL; it must be as https://HOST/v1") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise InputError("base_url: must begin with http:// or https:// and a host")
        if url.port is not None and not 0 < url.port < 1 << 16:
            raise InputError(f"base_url: port {url.port}: must be 1 to 65535")
        if url.userinfo or url.query:
            raise InputError("base_url: must hold no user, password or query; the key goes into the environment")
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        if key and not re.fullmatch("[!-~]+", key):
            raise InputError(
                "the endpoint's key: must be ASCII without spaces; see what is in its environment variable"
            )
        self._key = key
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._attempts, self._timeout = attempts, timeout_seconds
        self._interval = 60 / requests_per_minute
        self._backoff = wait_random_exponential(multiplier=backoff_seconds, max=_LONGEST_WAIT)
        self._next = 0.0
        self._under_way: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def __aenter__(self) -> "ChatEndpoint":
        self._client = httpx.AsyncClient(timeout=self._timeout, headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(self, body: dict[str, Any], validate: Validate, log: AnswerLog) -> Any:
        """What `validate` makes of the answer to `body`: the one in the log, or a new one.

        Raises:
            GivenUpError: none of the tries gave a valid answer, now or earlier.
            InputError: the endpoint refuses the key or the model, or does not answer.
        """
        request = request_hash(body)
        # Who asks the same meanwhile waits, and then finds the answer in the log.
        async with self._under_way.setdefault(request, asyncio.Lock()):
            return await self._ask(body, validate, log, request)

    async def _ask(self, body: dict[str, Any], validate: Validate, log: AnswerLog, request: str) -> Any:
        if entry := log.final(request):
            if entry["error"]:
                raise GivenUpError(entry["error"])
            return validate(entry["answer"])
        tries = AsyncRetrying(
            stop=stop_after_attempt(self._attempts),
            wait=self._wait,
            retry=retry_if_exception_type(_TryAgainError),
            reraise=True,
        )
        try:
            async for attempt in tries:
                with attempt:
                    return await self._try(body, validate, log, request)
        except _TryAgainError as error:
            if not error.is_answer:
                reason = f"{error} ({self._attempts} tries)"
                raise InputError(f"{self._url}: {reason}; run the same command again to go on") from None
            self._give_up(log, request, str(error))
        raise AssertionError  # tenacity returns or raises

    def _give_up(self, log: AnswerLog, request: str, reason: str) -> None:
        log.add({"request": request, "final": True, "answer": None, "error": reason, "usage": None})
        raise GivenUpError(reason)

    async def _try(self, body: dict[str, Any], validate: Validate, log: AnswerLog, request: str) -> Any:
        await self._pace()
        try:
            response = await self._client.post(self._url, json=body)
        except httpx.TimeoutException:
            raise _TryAgainError(f"no answer in {self._timeout:g} seconds") from None
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
        wait, self._next = self._next - now, self._next + self._interval
        await asyncio.sleep(wait)

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked_for = error.wait if isinstance(error, _TryAgainError) else 0.0
        return max(min(asked_for, _LONGEST_WAIT), self._backoff(state))

    def _hidden(self, text: str) -> str:
        """The text without the key, which some servers repeat."""
        return text.replace(self._key, "[key]") if self._key else text


def endpoint_of(settings: EndpointSettings) -> ChatEndpoint:
    """The endpoint, with the key that the environment holds.

    Raises:
        InputError: no key for an endpoint that wants one, a key or an URL that cannot be.
    """
    key = os.environ.get(settings.key_variable, "").strip()  # of a file, it may end in a newline
    if not key and settings.base_url == EndpointSettings.base_url:
        raise InputError(f"{settings.key_variable}: not in the environment; put the endpoint's key there")
    return ChatEndpoint(
        settings.base_url,
        key,
        requests_per_minute=settings.requests_per_minute,
        attempts=settings.attempts,
        timeout_seconds=settings.timeout_seconds,
        backoff_seconds=settings.backoff_seconds,
    )


async def ask_all(
    count: int,
    ask: Callable[[int], Awaitable[_Answer]],
    endpoint: ChatEndpoint,
    settings: EndpointSettings,
    advance: Callable[[int], None],
) -> list[_Answer | str]:
    """For each of `count` questions the answer, or why there is none.

    Args:
        count: how many.
        ask: asks one of them, by its number.
        endpoint: of `endpoint_of`.
        settings: how many at once.
        advance: is told of each that is through.

    Raises:
        InputError: what `ask` raises; or many questions without one valid answer.
    """
    answers: list[_Answer | str] = [""] * count
    numbers = iter(range(count))
    given_up, answered = 0, 0

    async def work() -> None:
        nonlocal given_up, answered
        for number in numbers:
            try:
                answers[number] = await ask(number)
                answered += 1
            except GivenUpError as error:
                answers[number] = str(error)
                given_up += 1
                if given_up >= _FAILURES and not answered:
                    raise InputError(f"{settings.base_url}: no valid answer to {given_up} documents: {error}") from None
            advance(1)

    async with endpoint:
        workers = [asyncio.create_task(work()) for _ in range(min(settings.concurrency, count))]
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
