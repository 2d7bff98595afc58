"""An OpenAI-compatible chat endpoint: retries, a rate limit, and no question asked twice."""

import asyncio
import hashlib
import os
import re
import time
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from vikhr_fast.errors import InputError
from vikhr_fast.io.files import json_text
from vikhr_fast.io.guarded import parse_json
from vikhr_fast.llm.answer_log import AnswerLog
from vikhr_fast.llm.settings import EndpointSettings

Messages = list[dict[str, Any]]
_REFUSED = {
    **dict.fromkeys((301, 302, 303, 307, 308), "the endpoint is elsewhere"),
    401: "the key is refused",
    402: "the account must be paid for",
    403: "the key may not do that",
    404: "no such endpoint or model",
}
_SHOWN_CHARACTERS = 200
_LONGEST_WAIT = 60.0


class GivenUpError(Exception):
    """The endpoint answered this request, but never as it must."""


class _TryAgainError(Exception):
    def __init__(self, reason: str, wait: float = 0.0, is_answer: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.is_answer = wait, is_answer


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
        """What `validate` makes of the answer that is in the log, or of a new one.

        Args:
            log: of answers.
            messages: the question.
            validate: gets the answer's text; raises ValueError if that is not what was asked for.
            more: further fields of the request.

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
            content = parse_json(response.content)
            answer, usage = self._hidden(content["choices"][0]["message"]["content"]), content.get("usage")
            answer.encode("utf-8")  # JSON can spell half of a surrogate pair
            value = validate(answer)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
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


def request_hash(body: dict[str, Any]) -> str:
    """What tells requests apart."""
    return hashlib.sha256(json_text(body, ensure_ascii=True, sort_keys=True).encode("ascii")).hexdigest()


def _retry_after(response: httpx.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("retry-after", 0)))
    except ValueError:  # a date: the backoff will do
        return 0.0
