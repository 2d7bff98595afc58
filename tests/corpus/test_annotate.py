"""Annotations from an endpoint that misbehaves: retried, validated, never asked for twice, no key anywhere."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from corpora import directory_bytes, make_documents
from endpoint import CRITERIA, Endpoint, serving

from vikhr_fast.cli import main
from vikhr_fast.corpus.annotate import ANNOTATIONS, Annotate, annotate
from vikhr_fast.corpus.settings import AnnotateStage
from vikhr_fast.data.documents import Documents
from vikhr_fast.errors import InputError
from vikhr_fast.llm.ask import FAILED

KEY = "sk-a-key-that-nobody-may-see"
TEXTS = [f"Документ номер {number}, в котором сказано {number * number}." for number in range(40)]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)


@pytest.fixture
def documents(tmp_path: Path) -> Documents:
    return make_documents(tmp_path / "in", {"a": TEXTS[:25], "b": [*TEXTS[25:], TEXTS[0]]}, part_bytes=1500)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving(Endpoint(judge=score)) as endpoint:
        yield endpoint


def score(text: str) -> int:
    return 1 + len(text) % 5


def settings(endpoint: Endpoint, documents: int = 100, **more: float) -> AnnotateStage:
    values = {"backoff_seconds": 0.01, "timeout_seconds": 0.5, "requests_per_minute": 1e6, "attempts": 4, **more}
    return AnnotateStage(
        model="judge", base_url=endpoint.url, key_variable="TEST_KEY", documents=documents, concurrency=4, **values
    )  # type: ignore[arg-type]


def annotate_documents(documents: Documents, output: Path, settings: AnnotateStage) -> None:
    annotate(Annotate(documents.directory, output, settings))


def annotations(output: Path) -> dict[str, dict[str, int]]:
    lines = [json.loads(line) for line in (output / ANNOTATIONS).read_text().splitlines()]
    return {line["text"]: line["scores"] for line in lines}


def hidden_key(root: Path) -> None:
    for name, content in directory_bytes(root).items():
        assert KEY.encode() not in content, name


def test_every_text_is_scored_once(documents: Documents, endpoint: Endpoint, tmp_path: Path) -> None:
    annotate_documents(documents, tmp_path / "out", settings(endpoint))
    assert annotations(tmp_path / "out") == {text: dict.fromkeys(CRITERIA, score(text)) for text in TEXTS}
    assert Counter(endpoint.asked) == Counter(TEXTS)  # the copy in the other source isn't asked for
    assert endpoint.keys == {f"Bearer {KEY}"}
    hidden_key(tmp_path)


def test_what_is_shown_alike_is_asked_for_once(documents: Documents, endpoint: Endpoint, tmp_path: Path) -> None:
    annotate_documents(documents, tmp_path / "out", settings(endpoint, maximum_characters=10))
    assert endpoint.asked == [TEXTS[0][:10]]
    assert set(annotations(tmp_path / "out")) == {TEXTS[0][:10]}


@pytest.mark.parametrize("status", ["402", "301", "308"])
def test_what_no_document_is_to_blame_for_ends_the_run_and_is_asked_again(
    documents: Documents, endpoint: Endpoint, tmp_path: Path, status: str
) -> None:
    endpoint.misbehave = lambda _text, _attempt: status if len(endpoint.asked) > 10 else None
    with pytest.raises(InputError, match=f"status {status}: "):
        annotate_documents(documents, tmp_path / "out", settings(endpoint))
    endpoint.misbehave = lambda _text, _attempt: None
    annotate_documents(documents, tmp_path / "out", settings(endpoint))
    assert set(annotations(tmp_path / "out")) == set(TEXTS)


FAULTS = ("429", "500", "503", "slow", "drop", "cut", "range", "missing", "chat", "html", "block")


def test_every_kind_of_fault_is_got_over(
    documents: Documents, endpoint: Endpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def misbehave(text: str, attempt: int) -> str | None:
        number = TEXTS.index(text)
        return FAULTS[number % len(FAULTS)] if attempt == 1 else None

    endpoint.misbehave = misbehave
    annotate_documents(documents, tmp_path / "out", settings(endpoint))
    assert annotations(tmp_path / "out") == {text: dict.fromkeys(CRITERIA, score(text)) for text in TEXTS}
    assert (tmp_path / "out" / FAILED).read_text() == ""
    stored = [json.loads(line) for line in (tmp_path / "out.answers.jsonl").read_text().splitlines()]
    assert sum("[key]" in (entry["answer"] or "") for entry in stored) == sum(
        FAULTS[number % len(FAULTS)] == "chat" for number in range(len(TEXTS))
    )
    hidden_key(tmp_path)
    assert KEY not in caplog.text


def test_a_document_that_never_gets_an_answer_is_given_up_for_good(
    documents: Documents, endpoint: Endpoint, tmp_path: Path
) -> None:
    endpoint.misbehave = lambda text, _: {TEXTS[3]: "range", TEXTS[4]: "400"}.get(text)
    annotate_documents(documents, tmp_path / "out", settings(endpoint))
    failed = [json.loads(line) for line in (tmp_path / "out" / FAILED).read_text().splitlines()]
    assert {one["reason"].split(":")[0] for one in failed} == {"not a valid answer", "status 400"}
    assert len(annotations(tmp_path / "out")) == len(TEXTS) - 2
    assert endpoint.asked.count(TEXTS[3]) == 4
    assert endpoint.asked.count(TEXTS[4]) == 1
    asked = len(endpoint.asked)
    annotate_documents(documents, tmp_path / "again", settings(endpoint, documents=100))
    assert len(endpoint.asked) > asked  # another log: all is asked anew
    hidden_key(tmp_path)


def test_an_endpoint_that_is_gone_ends_the_run_and_nothing_is_asked_twice(
    documents: Documents, endpoint: Endpoint, tmp_path: Path
) -> None:
    endpoint.misbehave = lambda _text, _attempt: "503" if len(endpoint.answered) >= 15 else None
    with pytest.raises(InputError, match=r"status 503 \(4 tries\); run the same command again"):
        annotate_documents(documents, tmp_path / "out", settings(endpoint))
    assert not (tmp_path / "out").exists()
    answered = set(endpoint.answered)
    assert len(answered) >= 15
    endpoint.misbehave = lambda _text, _attempt: None
    before = len(endpoint.asked)
    annotate_documents(documents, tmp_path / "out", settings(endpoint))
    assert not answered & set(endpoint.asked[before:])
    assert len(annotations(tmp_path / "out")) == len(TEXTS)
    # More documents with the same log: only the new ones are asked for.
    before = len(endpoint.asked)
    (tmp_path / "out").rename(tmp_path / "old")
    annotate_documents(documents, tmp_path / "out", settings(endpoint))
    assert len(endpoint.asked) == before


@pytest.mark.parametrize("status", ["401", "403", "404"])
def test_a_refused_key_or_model_ends_the_run_at_once(
    documents: Documents, endpoint: Endpoint, tmp_path: Path, status: str
) -> None:
    endpoint.misbehave = lambda _text, _attempt: status
    with pytest.raises(InputError, match=f"status {status}: .*see the key, base_url and model") as error:
        annotate_documents(documents, tmp_path / "out", settings(endpoint))
    assert KEY not in str(error.value)
    assert len(endpoint.asked) <= 4
    hidden_key(tmp_path)


def test_an_endpoint_that_talks_nonsense_ends_the_run(documents: Documents, endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.misbehave = lambda _text, _attempt: "400"
    with pytest.raises(InputError, match="no valid answer to 20 questions: status 400"):
        annotate_documents(documents, tmp_path / "out", settings(endpoint))


_SCRIPT = """
import signal, sys
from vikhr_fast.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_asks_for_nothing_it_has(
    documents: Documents, endpoint: Endpoint, tmp_path: Path, stop: signal.Signals
) -> None:
    judged, stopped = threading.Event(), threading.Event()

    def hold(_text: str, _attempt: int) -> str | None:
        if len(endpoint.answered) >= 12:
            judged.set()
            stopped.wait(2)  # the run, some thirty texts, can't end before the signal
        return None

    endpoint.misbehave = hold
    command = [
        *("corpus", "annotate", str(documents.directory), "--output", str(tmp_path / "out"), "--model", "judge"),
        *("--base-url", endpoint.url, "--key-variable", "TEST_KEY", "--concurrency", "1", "--documents", "100"),
        *("--requests-per-minute", "1e6"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, *command], stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert judged.wait(60)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=30)
    stopped.set()
    assert process.returncode == (-9 if stop == signal.SIGKILL else 130)
    assert "Traceback" not in errors
    with pytest.raises(SystemExit) as finished:
        main(command)
    assert finished.value.code == 0
    twice = [text for text, count in Counter(endpoint.asked).items() if count > 1]
    # At most the one request that was under way, whose answer never came in.
    assert len(twice) <= 1
    assert len(annotations(tmp_path / "out")) == len(TEXTS)
    hidden_key(tmp_path)
    assert KEY not in errors


def test_the_rate_is_limited(documents: Documents, endpoint: Endpoint, tmp_path: Path) -> None:
    start = time.monotonic()
    annotate_documents(documents, tmp_path / "out", settings(endpoint, documents=11, requests_per_minute=1200))
    assert time.monotonic() - start >= 10 * 60 / 1200
    assert len(endpoint.asked) == 11


def test_the_estimate_asks_nothing(documents: Documents, endpoint: Endpoint) -> None:
    prices = settings(endpoint, documents=30, input_price=2.0, output_price=8.0)
    found = annotate(Annotate(documents.directory, Path(), prices, dry_run=True))
    assert found
    assert found["documents"] == 30
    assert found["cost"] == round((found["input_tokens"] * 2 + found["output_tokens"] * 8) / 1e6, 4) > 0
    assert not endpoint.asked


@pytest.mark.parametrize(
    "url", ["ftp://host/v1", "http://user:secret@host/v1", "http://host/v1?key=secret", "nothing", "http://host:99999"]
)
def test_an_url_that_cannot_be_or_holds_a_secret_is_refused(documents: Documents, tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match=r"base_url: (must|port 99999)") as error:
        annotate_documents(documents, tmp_path / "out", AnnotateStage(model="judge", base_url=url))
    assert "secret" not in str(error.value)


def test_without_a_key_the_variable_is_named(
    documents: Documents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="OPENAI_API_KEY: not in the environment"):
        annotate_documents(documents, tmp_path / "out", AnnotateStage(model="judge"))


@pytest.mark.parametrize("key", ["ключ-тайна", "тайна", "two words", "sk-\x01"])
def test_a_key_that_cannot_be_is_refused_and_not_shown(
    endpoint: Endpoint, documents: Documents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("TEST_KEY", key)
    with pytest.raises(InputError, match="key: must be ASCII without spaces") as error:
        annotate_documents(documents, tmp_path / "out", settings(endpoint))
    assert key not in str(error.value)


def test_a_key_that_was_read_from_a_file_may_end_its_line(
    endpoint: Endpoint, documents: Documents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", f"{KEY}\n")
    annotate_documents(documents, tmp_path / "out", settings(endpoint))
    assert endpoint.keys == {f"Bearer {KEY}"}
