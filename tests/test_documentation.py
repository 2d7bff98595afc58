"""Documentation can't rot: its commands parse, its settings, files and links exist, and its pages stay short."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import get_type_hints

import pytest

from vikhr_fast.commands import COMMANDS, parse
from vikhr_fast.config import TrainConfig

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [README, *DOCS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "kernels" / "README.md"]
SCRIPTS = sorted(set((ROOT / "examples").glob("*.sh")) - {ROOT / "examples" / "stages.sh"})  # what the others source
NAMES = {command.path for command in COMMANDS} | {command.path.rpartition(" ")[0] for command in COMMANDS}

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_STARTS = re.compile(r"(?:vikhr-fast|-m vikhr_fast\.(train))(?= )")
_PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*|\$\{?[A-Z_]+\}?")
_PATH = re.compile(r"(?:vikhr_fast|kernels|csrc|tests|bench|docs|examples)/[\w./*-]*")
_SETTING = re.compile(
    r"(?<![\w/.-])(data|batch|optimizer|kl|runtime|schedule|evaluation|incidents)\.(?!jsonl?\b)([a-z_0-9]+)(?![\w/.])"
)


def code_of(text: str) -> Iterator[str]:
    """What a page shows as code: fenced blocks that aren't Python or TOML, lines indented by four, and spans."""
    for fence in _FENCE.finditer(text):
        if fence[2] not in ("python", "toml"):
            yield from joined(fence[3])
    prose = _FENCE.sub("", text)
    yield from joined("\n".join(line for line in prose.splitlines() if line.startswith("    ")))
    yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose))


def joined(text: str) -> list[str]:
    """Lines, those that end in a backslash with the next one."""
    return text.replace("\\\n", " ").splitlines()


def commands_in(lines: Iterator[str] | list[str]) -> Iterator[list[str]]:
    """The words of each `vikhr-fast` command, and of each training that torchrun starts, with "1" for placeholders."""
    for line in lines:
        start = _STARTS.search(line)
        if start and not line.lstrip().startswith("#"):
            words = shlex.split(line[start.end() :].partition("; ")[0], comments=True)
            words = ["1" if _PLACEHOLDER.fullmatch(word) else word for word in words]
            yield ["train", *words] if start[1] else words


@cache  # pages share commands
def accepted(words: tuple[str, ...]) -> None:
    """Fails where the real command line refuses the words; the name of a command alone is no call of it."""
    if " ".join(words) in NAMES or words == ("--version",):
        return
    try:
        parse(words)
    except SystemExit as exit_info:
        assert not exit_info.code, f"vikhr-fast {shlex.join(words)}"  # noqa: PT017


def test_commands_are_found() -> None:
    text = "Run `vikhr-fast plan`:\n\n    torchrun -m vikhr_fast.train --config A \\\n        --model M  # why\n"
    assert list(commands_in(code_of(text))) == [["train", "--config", "1", "--model", "1"], ["plan"]]
    assert sum(1 for page in PAGES for _ in commands_in(code_of(page.read_text()))) > 60
    with pytest.raises(AssertionError, match="no-such-flag"):
        accepted(("plan", "--no-such-flag"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_pages_commands_parse(page: Path) -> None:
    for words in commands_in(code_of(page.read_text(encoding="utf-8"))):
        accepted(tuple(words))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_scripts_commands_parse(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    for line in joined(script.read_text(encoding="utf-8")):
        for words in commands_in([line]):
            added = ["--output", "1"] if line.startswith("stage ") else []
            accepted((*words, *added))


def test_a_dry_run_prints_and_checks_every_command(tmp_path: Path) -> None:
    script = tmp_path / "examples" / "script.sh"
    script.parent.mkdir()
    (script.parent / "stages.sh").write_text((ROOT / "examples" / "stages.sh").read_text())
    lines = [
        "source examples/stages.sh",
        "stage out vikhr-fast adapt --base B --tokenizer T",
        "run vikhr-fast plan --{}",
    ]
    for flag, code in (("json", 0), ("no-such-flag", 2)):
        script.write_text("\n".join(lines).format(flag))
        environment = {**os.environ, "DRY_RUN": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        command = ["bash", "examples/script.sh"]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert (result.returncode, "+ vikhr-fast adapt --base B" in result.stdout) == (code, True), result.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_files_and_settings_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in _LINK.findall(_FENCE.sub("", text)):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target
    for code in code_of(text):
        for word in code.split():
            if _PATH.fullmatch(word):
                assert any(ROOT.glob(word.rstrip("/"))), word
        for section, name in _SETTING.findall(code):
            config = get_type_hints(TrainConfig)[section]
            assert is_dataclass(config)
            assert name in {field.name for field in fields(config)}, f"{section}.{name}"


def anchors(page: Path) -> set[str]:
    """What the headings of a page can be linked by."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_pages_stay_short() -> None:
    assert README.stat().st_size <= 12_500
    assert {str(page): page.stat().st_size for page in PAGES[1:] if page.stat().st_size > 10_000} == {}


def test_every_page_is_in_the_index() -> None:
    index = README.parent / "docs" / "README.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for target in _LINK.findall(index.read_text())}
    assert set(DOCS) - linked == {index}
