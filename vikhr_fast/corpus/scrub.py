"""`corpus scrub`: private strings give way to tags."""

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import phonenumbers
import pyarrow as pa
from tyro.conf import Positional, arg

from vikhr_fast.corpus.settings import ScrubStage
from vikhr_fast.corpus.stage import Transformed, is_finished, map_parts, work_of
from vikhr_fast.data.documents import Counts, Documents, add_counts
from vikhr_fast.errors import InputError

Spans = Iterator[tuple[int, int]]

# Every pattern begins where its run of characters does and is bounded, so that no text takes quadratic time.
_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}(?:xn--[a-z\d-]{1,59}|[^\W\d_]{2,24})(?!\w)")
# Not in the middle of a decimal fraction. A run may hold several numbers, which the library tells apart.
_PHONE = re.compile(r"(?<![\d+])(?:\+|(?<!\d\.)(?<!\d,))\(?\d[\d ().\u00a0‑–-]{8,200}\d(?!\d|,\d)")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_IPV6_GIVEN_OUT = ipaddress.ip_network("2000::/3")
_KEYS = re.compile(
    r"""-----BEGIN\ [A-Z ]{0,20}PRIVATE\ KEY-----[\s\S]{1,10000}?-----END\ [A-Z ]{0,20}PRIVATE\ KEY-----
    | (?<![\w-])(?:
        (?:AKIA|ASIA)[0-9A-Z]{16}                                # Amazon
      | gh[pousr]_[A-Za-z0-9]{36,255} | github_pat_\w{22,255}     # GitHub
      | glpat-[\w-]{20,64}                                       # GitLab
      | AIza[\w-]{35}                                            # Google
      | hf_[A-Za-z0-9]{30,64}                                    # Hugging Face
      | sk-[\w-]{20,200}                                         # OpenAI, Anthropic
      | xox[abprs]-[A-Za-z0-9-]{10,200}                          # Slack
      | eyJ[\w-]{10,2000}\.eyJ[\w-]{10,4000}\.[\w-]{10,2000}      # JSON web tokens
    )(?![\w-])""",
    re.VERBOSE,
)
_ASSIGNED = re.compile(
    r"(?i)(?<![a-zа-я])(?:api[_-]?key|secret|token|passw(?:or)?d|пароль|ключ)[\"']?\s{0,3}[:=]\s{0,3}[\"']?([\w+/=-]{16,4000})"
)


@dataclass(frozen=True)
class Scrub:
    """Replaces e-mail addresses, phone numbers, public IP addresses and keys by tags, and counts them."""

    input: Annotated[Path, Positional]
    """Documents that an earlier stage wrote."""
    output: Path
    """Directory to make."""
    settings: Annotated[ScrubStage, arg(name="")] = field(default_factory=ScrubStage)
    """What is replaced."""


def scrub(options: Scrub) -> None:
    """Writes `options.output`, complete or not at all; interrupted, the same command goes on."""
    settings = options.settings
    if settings.region not in phonenumbers.SUPPORTED_REGIONS:
        raise InputError(f"scrub: region {settings.region}: no such country; take its two letters, as RU")
    documents = Documents.open(options.input)
    work = work_of("scrub", settings, input=documents.sha256)
    if is_finished(options.output, work, settings):
        return

    def transform(table: pa.Table) -> Transformed:
        texts, counts = [], Counts()
        for text, source in zip(table["text"].to_pylist(), table["source"].to_pylist(), strict=True):
            scrubbed, found = scrub_text(text, settings)
            texts.append(scrubbed)
            add_counts(counts, {source: found})
        return Transformed(table.set_column(1, "text", pa.array(texts, pa.large_string())), counts, [])

    map_parts(documents, options.output, work, settings, transform)


def scrub_text(text: str, settings: ScrubStage) -> tuple[str, dict[str, int]]:
    """The text with tags, and how many of each kind of string there were."""
    counts: dict[str, int] = {}
    for kind, find in _FINDERS.items():
        if kind not in settings.kinds:
            continue
        pieces, end = [], 0
        for start, stop in find(text, settings.region):
            pieces += [text[end:start], f"[{kind.upper()}]"]
            end = stop
        counts[kind] = len(pieces) // 2
        text = "".join([*pieces, text[end:]])
    return text, counts


def _keys(text: str, _region: str) -> Spans:
    spans = [match.span() for match in _KEYS.finditer(text)]
    # Words of letters alone are spoken of as passwords, too.
    spans += [m.span(1) for m in _ASSIGNED.finditer(text) if re.search(r"\d", m[1]) and re.search(r"[^\W\d_]", m[1])]
    end = 0
    for start, stop in sorted(spans):
        if start >= end:
            yield start, stop
            end = stop


def _emails(text: str, _region: str) -> Spans:
    return (match.span() for match in _EMAIL.finditer(text)) if "@" in text else iter(())


def _addresses(text: str, _region: str) -> Spans:
    candidates = [*_IPV4.finditer(text), *_IPV6.finditer(text)]
    for match in sorted(candidates, key=lambda match: match.start()):
        try:
            address = ipaddress.ip_address(match[0])
            # Addresses of a home network or of the machine itself say nothing about anybody; A::B is a name in C++.
            if address.is_global and (address.version == 4 or address in _IPV6_GIVEN_OUT):
                yield match.span()
        except ValueError:
            continue


def _phones(text: str, region: str) -> Spans:
    for candidate in _PHONE.finditer(text):
        for found in phonenumbers.PhoneNumberMatcher(candidate[0], region):
            yield candidate.start() + found.start, candidate.start() + found.end


# Keys first: there is much in them that looks like something else.
_FINDERS: dict[Literal["key", "email", "ip", "phone"], Callable[[str, str], Spans]] = {
    "key": _keys,
    "email": _emails,
    "ip": _addresses,
    "phone": _phones,
}
