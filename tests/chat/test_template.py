"""A template that looks at what messages say makes of a chat what it makes in transformers, or the chat is refused."""

from typing import Any

import pytest
from chat_parts import parts_of

from vikhr_fast.chat import template
from vikhr_fast.chat.template import ChatTemplate, Message
from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer.chat_template import CHAT_TEMPLATES, read_template, render_chats

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
BODY = (
    "{%- for m in messages -%}{%- if m.role == 'assistant' -%}A:{% generation %}SAID{{ eos_token }}{% endgeneration %}"
    "{%- else -%}U:SAID{{ eos_token }}{%- endif -%}{%- endfor -%}"
)
CHATS = [
    [Message("user", "Кто ты?"), Message("assistant", "Я помогаю.")],
    [Message("user", "a"), Message("assistant", "")],
    [Message("user", "<b>think\n</think>Мир "), Message("assistant", "<b>think\n</think>Мир ")],
    [Message("user", "\x04\x05 \x020\x03 "), Message("assistant", " {{ 1 }} " * 40)],
]
CHANGED = {  # what changes most texts
    "lower": "{{ m.content|lower }}",
    "title": "{{ m.content|title }}",
    "escape": "{{ m.content|e }}",
    "replace": "{{ m.content|replace('<', '&lt;') }}",
    "lines": "{{ m.content.replace('\\n', '') }}",
    "length": "{{ m.content|length }}{{ m.content }}",
    "in a set": "{% set x %}{{ m.content }}{% endset %}{{ x|upper }}",
    "in a filter": "{% filter lower %}{{ m.content }}{% endfilter %}",
    "in a macro": "{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(m.content)|length }}{{ m.content }}",
    "whether there is any": "{{ (m.content or 'x') ~ (m.content ~ '')|length }}",
}
LOOKING = {  # what makes something else of some texts: the numbers of the chats above that are refused
    "empty": ("{% if m.content %}{{ m.content }}{% else %}(nothing){% endif %}", {1}),
    "split": ("{{ m.content.split('</think>')[-1] }}", {2}),
    "in": ("{% if 'think' in m.content %}T{% endif %}{{ m.content }}", {2}),
    "truncate": ("{{ m.content|truncate(100) }}", {3}),
    "equal": ("{% if m.content == messages[0].content and not loop.first %}DUP{% endif %}{{ m.content }}", {2}),
    "a mark": ("{% if '\\x04' in m.content %}\\x04{% endif %}{{ m.content }}", {3}),
    "the generation block": (
        "{{ m.content }}{% if m.content == 'a' %}{% generation %}{{ '' }}{% endgeneration %}{% endif %}",
        {1},
    ),
    "an error": ("{% if m.content == 'a' %}{{ raise_exception('no ' + m.content) }}{% endif %}{{ m.content }}", {1}),
    "Qwen3": (
        "{%- set content = m.content if m.content is string else '' %}{%- set thought = '' %}"
        "{%- if '</think>' in content %}"
        "{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
        "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
        "{%- if loop.last or thought %}<think>\n{{ thought.strip('\\n') }}\n</think>\n\n{% endif %}"
        "{{- content.lstrip('\\n') }}",
        {2},
    ),
}
WITHOUT_LOOKING = {
    "Llama 3": "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] + '<|eot_id|>' }}",
    "Llama 2": "{% if loop.first %}{% set system = m['content'] %}{% else %}{% set system = false %}{% endif %}"
    "{% if system != false %}<<SYS>>{{ system }}{% else %}{{ m.content }}{% endif %}",
    "Mistral": "{{ '[INST] ' ~ m.content ~ ' [/INST]' }}",
    "Phi 3": "{% if m.content is string %}{{ '<|' + m.role + '|>' + '\n' + m.get('content') }}{% endif %}",
    "a mark": "\x04{{ '\\x05' + m.content }}{{ ' \\x020\\x03 ' }}",
    "a macro": "{% macro f(x) %}[{{ x }}]{% endmacro %}{% set y %}{{ f(m.content) }}{% endset %}{{ y ~ '' }}",
    "a namespace": "{% set n = namespace(x='') %}{% set n.x = n.x + m.content %}{{ n.x|default('')|string }}",
}


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many chats each process renders."""
    counts = []

    def counted(source: str, name: str, chats: list[dict[str, Any]]) -> list[str | InputError]:
        counts.append(len(chats))
        return render_chats(source, name, chats)

    monkeypatch.setattr(template, "render_chats", counted)
    return counts


def of_source(said: str) -> ChatTemplate:
    return ChatTemplate(BODY.replace("SAID", said), "file", ["</s>"], TOKENS)


def text_of(tried: ChatTemplate, chat: list[Message]) -> str:
    return "".join(part.value for part in parts_of(tried, chat))


def of_transformers(source: str, chat: list[Message]) -> Any:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [message.record() for message in chat]
    return render_jinja_template([messages], chat_template=source, add_generation_prompt=False, **TOKENS)[0][0]


@pytest.mark.parametrize("name", CHANGED)
def test_a_template_that_changes_texts_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"^file: (changes, moves|looks at what is said in a chat of user, assistant)"):
        parts_of(of_source(CHANGED[name]), CHATS[0])


@pytest.mark.parametrize("name", LOOKING)
def test_chats_that_make_a_difference_are_refused_and_others_are_as_in_transformers(name: str) -> None:
    said, refused = LOOKING[name]
    tried = of_source(said)
    for number, chat in enumerate(CHATS):
        if number in refused:
            with pytest.raises(InputError, match=r"^file: (looks at what is said in|refuses) a chat of .*;") as error:
                parts_of(tried, chat)
            assert str(error.value).isprintable()
            assert len(str(error.value)) < 500
        else:
            text = text_of(tried, chat)
            assert text == of_transformers(BODY.replace("SAID", said), chat)
            trained = "".join(part.value for part in parts_of(tried, chat) if part.is_trained)
            assert trained == text.partition("A:")[2]


def test_the_error_shows_the_place() -> None:
    with pytest.raises(InputError) as error:
        parts_of(of_source(LOOKING["split"][0]), CHATS[2])
    assert str(error.value) == (
        "file: looks at what is said in a chat of user, assistant, and makes 'U:Мир </s>A:Мир </s>' where it should be"
        r" 'U:<b>think\n</think>Мир </s>A:<b>think\n</think>Мир </s>'; take another template, or leave this chat out"
    )


@pytest.mark.parametrize("name", [*WITHOUT_LOOKING, *CHAT_TEMPLATES])
def test_usual_templates_are_rendered_once_for_all_texts(name: str, processes: list[int]) -> None:
    source = (
        BODY.replace("SAID", WITHOUT_LOOKING[name]) if name in WITHOUT_LOOKING else read_template(CHAT_TEMPLATES[name])
    )
    tried = ChatTemplate(source, "file", ["</s>"], TOKENS)
    for chat in CHATS:
        assert text_of(tried, chat) == of_transformers(source, chat)
    assert len(processes) == 1


def test_a_process_renders_many_chats_of_a_template_that_looks(processes: list[int]) -> None:
    tried = of_source(LOOKING["split"][0])
    chats = [[Message("user", f"Раз {n}"), Message("assistant", "два " * n)] for n in range(50)]
    together = tried.parts(chats, False)
    assert processes == [2, 50]
    assert together[::9] == [parts_of(tried, chat) for chat in chats[::9]]
    mixed = tried.parts([chats[0], CHATS[2], chats[1]], False)
    assert tried.parts([CHATS[2]], False)[0] is not mixed[1]  # of this chat, not kept for others
    assert mixed[::2] == together[:2]
    assert isinstance(mixed[1], InputError)
    large = [[Message("user", "я" * 300_000), Message("assistant", "да")]] * 7
    del processes[:]
    tried.parts(large, False)
    assert sum(processes) == 7
    assert 2 <= len(processes) <= 4
