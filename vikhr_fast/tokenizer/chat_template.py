"""Chat templates in Jinja, which are files of the tokenizer: those that come with this package, and any."""

import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from vikhr_fast.errors import InputError
from vikhr_fast.io.files import json_text
from vikhr_fast.io.guarded import parse_json, read_json
from vikhr_fast.io.plain import one_line
from vikhr_fast.tokenizer.files import CHAT_TEMPLATE, TOKENIZER_CONFIG

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)
TEMPLATES = Path(__file__).parent.parent / "templates"
CHAT_TEMPLATES = {name: TEMPLATES / f"{name}.jinja" for name in ("chatml", "llama-3", "mistral-instruct")}
"""The templates that come with this package, by name."""
NONCE = secrets.token_hex(8)
"""Makes what we put into a rendered chat differ from all that a template or a message can say."""
BEGIN, END = f"\x04{NONCE}", f"\x05{NONCE}"
"""What stands in a rendered chat around what the assistant says."""
_RENDERER = Path(__file__).with_name("chat_renderer.py")
_MOST_BYTES = 1 << 20  # of a template; those with tools and a long system message have 30,000
_SECONDS = 5  # of computing, for a template and all the chats that are rendered at once, which takes 0.1
_MEMORY_BYTES = 256 << 20
_PATIENCE = 600  # seconds until an answer, on a machine that is busy with other things
_SHOWN_ROLES = 4
_ADVICE = "mend the template, or take another"


def read_template(file: Path) -> str:
    """The source of a template; InputError where it cannot be read, is too long, or no text."""
    try:
        with file.open("rb") as stream:
            source = stream.read(_MOST_BYTES + 1)
        if len(source) > _MOST_BYTES:
            raise InputError(f"{file}: longer than {_MOST_BYTES:,} bytes; give a file with a chat template")
        return source.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: byte {error.start}: not UTF-8; give a file with a chat template") from None
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; give a file with a chat template") from None


def model_template(directory: Path) -> tuple[str, str]:
    """The source of a model's template, and the name of its file: chat_template.jinja, or tokenizer_config.json.

    Raises:
        InputError: there is none, or none that is a text.
    """
    file, config = directory / CHAT_TEMPLATE, directory / TOKENIZER_CONFIG
    if file.is_file():
        return read_template(file), str(file)
    given = read_json(config).get("chat_template") if config.is_file() else None
    if given in (None, ""):
        raise InputError(f"{file}: no such file; `vikhr-fast tokenizer export` writes one, or put one there")
    if isinstance(given, list):  # named ones, for chats with tools and so on
        given = {str(one.get("name")): one.get("template") for one in given if isinstance(one, dict)}
    source = given.get("default") if isinstance(given, dict) else given
    if not isinstance(source, str):
        raise InputError(f"{config}: chat_template: neither a text nor a list with one that is named default; mend it")
    if len(source.encode("utf-8", "replace")) > _MOST_BYTES:
        raise InputError(f"{config}: chat_template: longer than {_MOST_BYTES:,} bytes; give another")
    return source.replace("\r\n", "\n").replace("\r", "\n"), str(config)


def render_chats(source: str, name: str, chats: Sequence[Mapping[str, Any]]) -> list[str | InputError]:
    """Renders chats as transformers does, in a process that is limited in time and memory, see `chat_renderer`.

    One process starts for all of them, and takes a tenth of a second. Where it comes to its limits, another goes on; a
    chat with which one comes to them at once is refused.

    Args:
        source: of the template.
        name: for errors: the file it is from.
        chats: of each the template's values: `messages`, each with its `role`, `add_generation_prompt`, `bos_token` and
            so on. A text given as `{"opaque": text}` can be put out; looking at it is an error, so that what comes of
            others in its place is known.

    Returns:
        For each chat its text, what the assistant says between `BEGIN` and `END`, or why there is none.

    Raises:
        InputError: a machine on which nothing comes to an end.
    """

    def refused(why: str) -> InputError:
        return InputError(f"{name}: {one_line(why)}; {_ADVICE}")

    rendered: list[str | InputError] = []
    while rest := chats[len(rendered) :]:
        try:
            (compiled, *answers), death = _ask(source, rest)
        except subprocess.TimeoutExpired:
            raise refused(f"rendering takes more than {_PATIENCE} s") from None
        if "error" in compiled:
            return [refused(compiled["error"])] * len(chats)
        for chat, one in zip(rest, answers, strict=False):
            chat_of = named_roles([message["role"] for message in chat["messages"]])
            rendered.append(one["text"] if "text" in one else refused(f"refuses {chat_of}: {one['error']}"))
        if not answers:
            rendered.append(refused(death))
    return rendered


def _ask(source: str, chats: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, str]], str]:
    """What one renderer says of the template and of each chat, as far as it comes; and why it comes no further."""
    limits = {"seconds": _SECONDS, "memory_bytes": _MEMORY_BYTES}
    requests = [{"source": source, "marks": (BEGIN, END), "now": _now(), **limits}, *chats]
    lines = "\n".join(json_text(one, ensure_ascii=True) for one in requests).encode()
    command = [sys.executable, "-IS", str(_RENDERER), *filter(None, sys.path)]
    ended = subprocess.run(command, input=lines, capture_output=True, timeout=_PATIENCE, check=False)
    death, whole_lines = _death(ended), ended.stdout.split(b"\n")[:-1]
    return [parse_json(line) for line in whole_lines] or [{"error": death}], death


@cache
def _now() -> str:
    """When the first template was rendered: were it later for others, chats of one kind would differ at midnight."""
    return datetime.now().isoformat()


def _death(process: "subprocess.CompletedProcess[bytes]") -> str:
    """Why the renderer gave no answer."""
    if process.returncode == -signal.SIGKILL:
        return f"rendering takes more than {_SECONDS} s"
    last = process.stderr.decode("utf-8", "replace").strip().rpartition("\n")[-1]
    return f"rendering ends with exit code {process.returncode} {last}".rstrip()


def try_template(source: str, name: str, roles: Mapping[str, str]) -> None:
    """Raises InputError unless a template renders a question with its answer.

    Args:
        source: of the template.
        name: for errors: the file it is from.
        roles: what bos_token, eos_token and so on stand for.
    """
    messages = [{"role": role, "content": role} for role in ("user", "assistant")]
    rendered = render_chats(source, name, [{"messages": messages, "add_generation_prompt": False, **roles}])[0]
    if isinstance(rendered, InputError):
        raise rendered


def named_roles(roles: Sequence[Role]) -> str:
    """A chat for an error, by its first few roles."""
    more = f" and {len(roles) - _SHOWN_ROLES:,} more" if len(roles) > _SHOWN_ROLES else ""
    return f"a chat of {', '.join(roles[:_SHOWN_ROLES])}{more}"
