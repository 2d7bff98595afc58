"""Prompts are translated and answered by an endpoint that does it badly: checked, logged, never asked for twice."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from endpoint import Endpoint, serving

from vikhr_fast.chat.conversation import Conversation, read_conversations, write_conversations
from vikhr_fast.chat.template import Message
from vikhr_fast.errors import InputError
from vikhr_fast.instruct.convert import CONVERSATIONS
from vikhr_fast.instruct.translate import Translate, checked_translation, translate
from vikhr_fast.llm.ask import FAILED
from vikhr_fast.llm.settings import EndpointSettings

CODE = "```py\nprint('hi')\n```"
PROMPTS = (
    "What is a river?",
    f"Explain this:\n{CODE}",
    "Fill {name} in at https://example.com/a?b=1",
    "Lose the `code`",
)


def reply(body: dict[str, Any]) -> str:
    """Translates by putting Cyrillic for Latin, outside of code; answers in Russian."""
    text = body["messages"][-1]["content"]
    if "Translate the text" not in body["messages"][0]["content"]:
        return f"Ответ на вопрос: {len(text)}"
    kept = {CODE: "⟦0⟧", "{name}": "⟦1⟧", "https://example.com/a?b=1": "⟦2⟧"}
    for part, mark in kept.items():
        text = text.replace(part, mark)
    text = "".join("ж" if character.isascii() and character.isalpha() else character for character in text)
    for part, mark in kept.items():
        text = text.replace(mark, part)
    return text


def test_prompts_are_translated_and_answered(tmp_path: Path) -> None:
    made = [
        Conversation(str(n), "s", "en", (Message("user", p), Message("assistant", "x"))) for n, p in enumerate(PROMPTS)
    ]
    system = (Message("system", "Be kind"), *made[0].messages, Message("user", "more"), Message("assistant", "y"))
    write_conversations(tmp_path / "in.jsonl", [*made, Conversation("4", "s", "en", system)])
    with serving(Endpoint(reply=reply)) as endpoint:
        settings = EndpointSettings(
            model="m", base_url=endpoint.url, key_variable="NO_KEY", attempts=2, backoff_seconds=0.01,
            requests_per_minute=1e6,
        )  # fmt: skip
        options = Translate((tmp_path / "in.jsonl",), tmp_path / "out", settings)
        translate(options)
        before = len(endpoint.asked)
        (tmp_path / "again.answers.jsonl").write_bytes((tmp_path / "out.answers.jsonl").read_bytes())
        translate(replace(options, output=tmp_path / "again"))
        assert len(endpoint.asked) == before
    found = {one.id: one for one in read_conversations([tmp_path / "out" / CONVERSATIONS])}
    assert sorted(found) == ["0", "1", "2", "4"]
    assert {one.language for one in found.values()} == {"ru"}
    assert found["0"].prompt == "жжжж жж ж жжжжж?"
    assert CODE in found["1"].prompt
    assert "{name}" in found["2"].prompt
    assert [message.role for message in found["4"].messages] == ["system", "user", "assistant"]
    assert found["0"].answer == "Ответ на вопрос: 16"
    failed = [json.loads(line) for line in (tmp_path / "out" / FAILED).read_text().splitlines()]
    assert [entry["id"] for entry in failed] == ["3"]
    assert "it lost '`code`'" in failed[0]["reason"]


@pytest.mark.parametrize(
    ("original", "text", "reason"),
    [
        ("What is it?", "Что это?", None),
        ("What is it?", "  Что это?\n", None),
        ("What is it?", "What is it, then?", "not in Russian"),
        ("What is it?", "", "became 0"),
        ("What is it?", "Что " * 100, "characters became"),
        ("A very long question about nothing at all", "Да", "characters became 2"),
        ("<b>Bold</b>", "Жирный", "it lost '<b>'"),
        ("$$x^2$$ what", "$$x^2$$ что", None),
        ("$$x^2$$ what", "$$x^3$$ что", "it lost"),
        ("`a` and `a`", "`a` и", "it lost '`a`'"),
        ("```\ncode\n```", "```\ncode\n```", None),
        ("2 + 2", "2 + 2", None),
    ],
)
def test_what_a_translation_must_keep(original: str, text: str, reason: str | None) -> None:
    if reason is None:
        assert checked_translation(original, "ru", text) == text.strip()
    else:
        with pytest.raises(ValueError, match=reason):
            checked_translation(original, "ru", text)


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    options = Translate((tmp_path / "absent.jsonl",), tmp_path / "out", EndpointSettings(model="m"))
    with pytest.raises(InputError, match="OPENAI_API_KEY: not in the environment"):
        translate(options)
    with pytest.raises(InputError, match="--language fr: must be one of ru, en"):
        translate(replace(options, language="fr"))


def test_questions_alike_are_asked_once_and_half_a_character_is_no_answer(tmp_path: Path) -> None:
    before, after = Message("system", "Be kind"), Message("assistant", "x")
    chats = [
        Conversation(str(number), "s", "en", (before, Message("user", said), after))
        for number, said in enumerate(["What is a river?"] * 8 + ["Smile"])
    ]
    write_conversations(tmp_path / "in.jsonl", chats)
    with serving(Endpoint(reply=lambda body: "жжжжж \ud83d" if "Smile" in str(body) else reply(body))) as endpoint:
        settings = EndpointSettings(
            model="m", base_url=endpoint.url, key_variable="NO_KEY", attempts=2, backoff_seconds=0.01,
            requests_per_minute=1e6,
        )  # fmt: skip
        translate(Translate((tmp_path / "in.jsonl",), tmp_path / "out", settings))
    assert sorted(endpoint.asked) == sorted(["Be kind", "What is a river?", "жжжж жж ж жжжжж?", "Smile", "Smile"])
    failed = [json.loads(line) for line in (tmp_path / "out" / FAILED).read_text().splitlines()]
    assert [entry["id"] for entry in failed] == ["8"]
