"""Where private strings are in a text: keys, e-mail addresses, IP addresses, phone numbers.

Numbers of ten or eleven digits, and four numbers with points between, are mostly something else. How they are written
and the words around them decide. How well: `tests/helpers/lookalikes.py`.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal, NamedTuple

import phonenumbers
from phonenumbers import PhoneNumberType

Spans = Iterator[tuple[int, int]]
Kind = Literal["key", "email", "ip", "phone"]

# Every pattern begins where its run of characters does and is bounded, so that no text takes quadratic time.
_EMAIL = re.compile(
    r"(?<![\w.+%-])(?!git@[^\s:]{1,300}:)[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}"
    r"(?!(?:png|jpe?g|gif|svg|webp|css|js)\b)(?:xn--[a-z\d-]{1,59}|[^\W\d_]{2,24})(?![^\W_])"
)
_KEYS = re.compile(
    r"""-----BEGIN\ [A-Z ]{0,20}PRIVATE\ KEY-----[\s\S]{1,10000}?-----END\ [A-Z ]{0,20}PRIVATE\ KEY-----
    | (?<![\w-])(?:
        (?:AKIA|ASIA)[0-9A-Z]{16}                                # Amazon
      | gh[pousr]_[A-Za-z0-9]{36,255} | github_pat_\w{22,255}     # GitHub
      | glpat-[\w-]{20,64}                                       # GitLab
      | AIza[\w-]{35}                                            # Google
      | hf_[A-Za-z0-9]{30,64}                                    # Hugging Face
      | sk-(?=[\w-]{0,199}\d)[\w-]{20,200}                       # OpenAI, Anthropic; no names of styles
      | xox[abprs]-[A-Za-z0-9-]{10,200}                          # Slack
      | eyJ[\w-]{10,2000}\.eyJ[\w-]{10,4000}\.[\w-]{10,2000}      # JSON web tokens
    )(?![\w-])""",
    re.VERBOSE,
)
_ASSIGNED = re.compile(
    r"(?i)(?<![a-zа-я])(?:api[_-]?key|secret|token|passw(?:or)?d|пароль|ключ)[\"']?\s{0,3}[:=]\s{0,3}[\"']?([\w+/=-]{16,4000})"
)
_CODE_NAME = re.compile(r"[a-z]+\d{0,2}(?:_[a-z]+\d{0,2}|_\d{1,2}){2,}")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_IPV6_GIVEN_OUT = ipaddress.ip_network("2000::/3")
# Not in the middle of a decimal fraction. A run may hold several numbers.
_RUN = re.compile(r"(?<![\d+])(?:\+|(?<!\d\.)(?<!\d,))\(?\d[\d ().\u00a0\u202f‑–-]{8,200}\d(?!\d|,\d)")
_RUN_CHARACTERS = 200  # or more: it may go on
_LONGEST = 40  # characters of a phone number

_NEAR = 48  # characters in front of a number whose words say what it is
_BESIDE = 16  # in which they say so of any number


def _words(words: str) -> str:
    return rf"(?<![^\W_])(?:{words.replace(' ', '|')})(?![^\W_])"


_ADDRESS_OR_NOT = re.compile(
    "(?P<yes>"
    + _words(
        r"ip ipv4 айпи адрес\w* addr(?:ess\w*)? сервер\w* servers? хост\w* host\w* узел узл\w+ шлюз\w* gateway прокси"
        r" proxy vpn dns ping\w* пинг\w* tracer\w* подсет\w* сет[ьи] subnet network nameserver inet роутер\w* router"
    )
    + ")|(?P<no>"
    + _words(
        # sections
        r"п пп под?пункт\w* пункт\w* раздел\w* подраздел\w* глав\w* гл стать\w* ст част[ьи] параграф\w* приложени\w*"
        r" табл\w* рис\w* упражнени\w* задани\w* формул\w* шаг\w* гост снип код\w* шифр\w* оквэд\w* окпд\w* удк"
        r" sec(?:tion)?s? chapters? ch clauses? articles? paragraphs? fig(?:ure)?s? tables? appendix annex item steps?"
        # versions
        r" верси\w* вер прошив\w* сборк\w* билд\w* релиз\w* обнов\w* патч\w* драйвер\w* пакет\w* ядр\w* библиотек\w*"
        r" модул\w* браузер\w* программ\w* плагин\w* v ver versions? firmware releases? build patch up(?:date|grade)\w*"
        r" drivers? package kernel library plugin browser rev(?:ision)?"
    )
    + "|§)",
    re.IGNORECASE,
)
_LISTED_BEFORE = re.compile(r"(?:\d[\d.]*(?:\s?[,;–-]\s?|\s(?:и|или|по|до|and|or|to)\s))+$")
_VERSION_BEFORE = re.compile(r"[^\W\d]/$")
_ADDRESS_AFTER = re.compile(r":\d{2,5}\b|\s-\s\S{1,40}\s\[")  # a port; a line of a server's log
_NETWORK_AFTER = re.compile(r"/\d{1,2}\b")

_PHONE_OR_NOT = re.compile(
    "(?P<yes>"
    + _words(
        r"тел телеф\w* моб мобильн\w* сот сотов\w* факс\w* \w{0,4}звон\w* вайбер\w* ватсап\w* смс контакт\w*"
        r" tel telephones? phones? calls? fax mobile cell sms contacts? viber telegram whatsapp"
    )
    + ")|(?P<no>"
    + _words(
        r"инн кпп огрн\w* снилс окпо бик [рлк]/с счёт\w* счет\w* заказ\w* заявк\w* накладн\w* договор\w* контракт"
        r" полис\w* паспорт\w* артикул\w* арт трек\w* посылк\w* штрих\w* код\w* id ид идентифик\w* налогоплат\w*"
        r" страхов\w* реестр\w* регистрац\w* лицев\w* кадастр\w* инвентар\w* серийн\w* координат\w* широт\w* долгот\w*"
        r" isbn issn orders? invoice account acct vat tax sku serial tracking parcel barcode ref iban timestamp lat lon"
    )
    + ")",
    re.IGNORECASE,
)
_UNIT_AFTER = re.compile(
    r"\s?(?:[₽$€£%°]|(?:тыс|млн|млрд|трлн|руб|коп|долл|евро|тенге|иен|юан|гривен|чел|жител|люд|душ|км|кв|м[²2]|га|тонн|кг"
    r"|литр|шт|экз|знак|символ|байт|бит|голос|просмотр|лет|год|dollar|euro|usd|eur|rub|people|inhabitants|bytes|votes"
    r"|views|years|km|miles)(?![a-z]))",
    re.IGNORECASE,
)
_OTHER_BEFORE = re.compile(r"(?:[₽$€£№#]\s?|[A-Za-z_])$")
# A date, or a decimal fraction.
_NO_PHONE = re.compile(
    r"(?<!\d)[0-3]?\d([.-])[01]?\d\1(?:19|20)\d\d(?!\d)|(?<!\d)(?:19|20)\d\d-[01]\d-[0-3]\d(?!\d)"
    r"|^\+?\d{1,3}\.\d{4,}(?!\.)"
)
_DIGITS = re.compile(r"\d+")
_BORDER = re.compile(r"[\s()–]")  # between numbers, where a hyphen or a point is within one
_MOST_GROUPS = 7  # of digits in a phone number
_MOST_DIGITS = 18  # with what is dialled before a country's code


def _keys(text: str, _region: str) -> Spans:
    spans = [match.span() for match in _KEYS.finditer(text)]
    spans += [match.span(1) for match in _ASSIGNED.finditer(text) if _is_key(match)]
    end = 0
    for start, stop in sorted(spans):
        if start >= end:
            yield start, stop
            end = stop


def _is_key(match: re.Match[str]) -> bool:
    """Whether what is assigned is no word, such as are spoken of as passwords, and no name in a program."""
    value, after = match[1], match.string[match.end() : match.end() + 1]
    has_both = re.search(r"\d", value) and re.search(r"[^\W\d_]", value)
    return bool(has_both) and after not in ("(", "[") and not _CODE_NAME.fullmatch(value)


def _emails(text: str, _region: str) -> Spans:
    return (match.span() for match in _EMAIL.finditer(text)) if "@" in text else iter(())


def _addresses(text: str, _region: str) -> Spans:
    candidates = [*_IPV4.finditer(text), *_IPV6.finditer(text)]
    for match in sorted(candidates, key=lambda match: match.start()):
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            continue
        # Addresses of a home network or of the machine itself say nothing about anybody; A::B is a name in C++.
        if address.is_global and (_is_address(match) if address.version == 4 else address in _IPV6_GIVEN_OUT):
            yield match.span()


def _is_address(match: re.Match[str]) -> bool:
    """Whether four numbers are an address rather than a section or a version."""
    text, (start, stop) = match.string, match.span()
    if _VERSION_BEFORE.search(text, start - 2, start):
        return False
    if text[start - 2 : start] == "//" or text[start - 1 : start] == "@" or _ADDRESS_AFTER.match(text, stop):
        return True
    # Of addresses at random 1.3% have such numbers; most sections and versions do.
    numbers = [int(number) for number in match[0].split(".")]
    has_small = sum(number < 10 for number in numbers) >= 2 or max(numbers) < 64
    listed = _LISTED_BEFORE.search(text, _line_start(text, start), start)
    end = listed.start() if listed else start
    word = _last_word(_ADDRESS_OR_NOT, text, end)
    if word is None:
        return not has_small or _NETWORK_AFTER.match(text, stop) is not None
    return word["yes"] is not None or not (has_small or end - word.end() <= _BESIDE)


class _Numbering(NamedTuple):
    """How a country's phone numbers are written."""

    prefixes: tuple[str, ...]
    """What may stand in front of one: the country's code, the 8 of long-distance calls."""
    abroad: re.Pattern[str]
    """What is dialled in front of another country's code."""
    lengths: tuple[int, ...]
    groupings: frozenset[tuple[int, ...]]
    """Digits in each group: (3, 3, 2, 2) for 912 345-67-89."""


@cache
def _numbering(region: str) -> _Numbering:
    known: Any = phonenumbers.PhoneMetadata.metadata_for_region(region, None)
    groupings = set()
    for kind in (PhoneNumberType.FIXED_LINE, PhoneNumberType.MOBILE, PhoneNumberType.TOLL_FREE):
        if example := phonenumbers.example_number_for_type(region, kind):
            written = phonenumbers.format_number(example, phonenumbers.PhoneNumberFormat.RFC3966)
            groupings.add(tuple(map(len, written.split("-")[1:])))  # tel:+7-912-345-67-89
    return _Numbering(
        tuple(filter(None, (str(known.country_code), known.national_prefix))),
        re.compile(known.international_prefix or "00"),
        known.general_desc.possible_length,
        frozenset(groupings),
    )


def _phones(text: str, region: str) -> Spans:
    numbering, end = _numbering(region), 0
    while run := _RUN.search(text, end):
        found: list[tuple[int, int]] = []
        # Those that are plainly phone numbers go before the others, longer ones before their parts.
        for _, start, minus_stop in sorted(_phones_in(run, region, numbering)):
            if all(start >= stop or -minus_stop <= begin for begin, stop in found):
                found.append((start, -minus_stop))
        yield from sorted(found)
        # A longer run was cut, perhaps within a number.
        end = run.end() if len(run[0]) < _RUN_CHARACTERS else max([run.end() - _LONGEST, *(stop for _, stop in found)])


def _phones_in(run: re.Match[str], region: str, numbering: _Numbering) -> Iterator[tuple[bool, int, int]]:
    """All that may be a phone number in a run: whether it only may be one, its start, its end times -1."""
    text = run.string
    word = _last_word(_PHONE_OR_NOT, text, run.start())
    groups = [match.span() for match in _DIGITS.finditer(text, *run.span())]
    borders = {0, len(groups)}
    borders |= {n for n in range(1, len(groups)) if _BORDER.search(text, groups[n - 1][1], groups[n][0])}
    for first in sorted(borders - {len(groups)}):
        sizes: list[int] = []
        for last in range(first, min(first + _MOST_GROUPS, len(groups))):
            start, stop = groups[first][0], groups[last][1]
            sizes.append(stop - groups[last][0])
            start -= text[start - 1 : start] == "(" and ")" in text[start:stop]
            start -= text[start - 1 : start] == "+"
            if last + 1 not in borders or (sum(sizes) < numbering.lengths[0] and text[start] != "+"):
                continue
            is_alone = first == last or (first == 0 and last + 1 == len(groups))
            kind = _kind_of(text, start, stop, sizes, numbering, word, is_alone)
            if kind and _is_valid(text[start:stop], region):
                yield kind == "perhaps", start, -stop


def _kind_of(
    text: str,
    start: int,
    stop: int,
    sizes: list[int],
    numbering: _Numbering,
    word: re.Match[str] | None,
    is_alone: bool,
) -> Literal["plain", "perhaps"] | None:
    """Whether digits are written as a phone number is, or may be one by what is around them.

    Args:
        text: that they stand in.
        start: of the digits, or the sign in front of them.
        stop: their end.
        sizes: how many are in each group.
        numbering: of the country.
        word: the last one in front of the run that says what its numbers are.
        is_alone: whether no other numbers are beside them.
    """
    written = text[start:stop]
    digits = "".join(_DIGITS.findall(written))
    is_abroad = written[0] == "+" or (len(sizes) > 3 and numbering.abroad.match(digits) is not None)
    prefix = next(
        (p for p in numbering.prefixes if digits.startswith(p) and len(digits) - len(p) in numbering.lengths), ""
    )
    if len(digits) > _MOST_DIGITS or not (is_abroad or prefix or len(digits) in numbering.lengths):
        return None
    own = tuple(size for size in (sizes[0] - len(prefix), *sizes[1:]) if size)  # without the prefix
    is_usual = own in numbering.groupings
    is_amount = len(sizes) > 2 and set(sizes[1:]) == {3} and sizes[0] <= 3 and not re.search(r"[-‑(]", written)
    if is_abroad or "(" in written or (is_usual and not is_amount):
        kind: Literal["plain", "perhaps"] = "plain"
    elif word:
        if not word["yes"]:
            return None
        kind = "perhaps"
    else:
        has_code = bool(prefix) and (len(own) == 1 or 3 <= own[0] <= 5)
        if not is_usual and (is_amount or not has_code or not is_alone):
            return None
        if _OTHER_BEFORE.search(text, max(0, start - 2), start):
            return None
        kind = "perhaps"
    is_counted = (is_amount or len(sizes) == 1) and _UNIT_AFTER.match(text, stop) is not None
    return None if is_counted or _NO_PHONE.search(written) else kind


def _is_valid(written: str, region: str) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(written, region))
    except phonenumbers.NumberParseException:
        return False


def _line_start(text: str, end: int) -> int:
    """Where the words in front of a place begin that are looked at."""
    start = max(0, end - _NEAR)
    return text.rfind("\n", start, end) + 1 or start


def _last_word(pattern: re.Pattern[str], text: str, end: int) -> re.Match[str] | None:
    """The last match on the line in front of a place."""
    return max(pattern.finditer(text, _line_start(text, end), end), key=lambda word: word.start(), default=None)


FINDERS: dict[Kind, Callable[[str, str], Spans]] = {"key": _keys, "email": _emails, "ip": _addresses, "phone": _phones}
"""Of each kind where it is in a text, given a country. Keys first: there is much in them that looks like others."""
