"""A chat endpoint on this machine that judges by a rule, and misbehaves when told to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CRITERIA = ("informativeness", "usefulness", "grammar", "style", "safety")


@dataclass
class Endpoint:
    judge: Callable[[str], int] = lambda _text: 3
    """The score of a text."""
    reply: Callable[[dict[str, Any]], str] | None = None
    """What to answer to a request instead of scores."""
    misbehave: Callable[[str, int], str | None] = lambda _text, _attempt: None
    """How to answer a text's nth request instead: a status as text, or one of the names in `_answer`."""
    port: int = 0
    asked: list[str] = field(default_factory=list)
    """The text of every request, in their order."""
    answered: list[str] = field(default_factory=list)
    """The text of every request that got a valid answer."""
    keys: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@contextmanager
def serving(endpoint: Endpoint) -> Iterator[Endpoint]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            _answer(self, endpoint)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", endpoint.port), Handler)
    server.daemon_threads = True
    endpoint.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(request: BaseHTTPRequestHandler, endpoint: Endpoint) -> None:
    body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
    text = body["messages"][-1]["content"]
    key = request.headers.get("Authorization", "")
    with endpoint.lock:
        endpoint.keys.add(key)
        endpoint.asked.append(text)
        fault = endpoint.misbehave(text, endpoint.asked.count(text))
    scores: dict[str, Any] = dict.fromkeys(CRITERIA, endpoint.judge(text))
    content = json.dumps(scores) if endpoint.reply is None else endpoint.reply(body)
    if fault == "drop":
        request.connection.close()
        return
    if fault == "slow":
        time.sleep(1.0)
    elif fault == "cut":
        content = content[:20]
    elif fault == "range":
        content = json.dumps({**scores, "style": 7})
    elif fault == "missing":
        content = json.dumps({"style": 3})
    elif fault == "chat":
        content = f"Конечно! Ваш ключ {key.removeprefix('Bearer ')}, а оценки такие: хорошо."
    elif fault == "block":
        content = f"```json\n{content}\n```"
    elif fault and fault.isdigit():
        _send(request, int(fault), json.dumps({"error": f"the key {key.removeprefix('Bearer ')} and status {fault}"}))
        return
    if fault == "html":
        _send(request, 200, "<html>busy</html>")
        return
    if fault in (None, "block"):
        with endpoint.lock:
            endpoint.answered.append(text)
    answer = {"choices": [{"message": {"content": content}}], "usage": {"prompt_tokens": 9, "completion_tokens": 5}}
    _send(request, 200, json.dumps(answer))


def _send(request: BaseHTTPRequestHandler, status: int, text: str) -> None:
    content = text.encode()
    try:
        request.send_response(status)
        if status == 429:
            request.send_header("Retry-After", "0")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)
    except OSError:  # the other side has gone
        pass
