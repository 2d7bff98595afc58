"""The options of multiple-choice questions: which only fill a place, and which point at others."""

import math
import re
from collections.abc import Sequence
from functools import cache

from vikhr_fast.errors import InputError

_PADDING = ("n/a", "н/д")
_LATIN, _CYRILLIC = "ABCDEFGHIJ", "АБВГДЕЖЗИК"
_AND = r"\s*(?:,|;|(?:,\s*)?(?<!\w)(?:и|или|ни|and|or|nor)(?!\w))\s*(?:(?:и|ни|and|or)\s+)?"
_SAID_OF_LETTERS = "только|кроме|лишь|only|except|but|both|neither"
_SAID_OF_OPTIONS = r"вариант\w*|ответ(?:ы|а|ов|ам)?|пункт\w*|утверждени\w*|options?|choices?|answers?|statements?"
_OTHERS_MEANT = re.compile(
    r"(?<!\w)(?:"
    r"(?:all|none|any|both|neither|either|some|most|each|one|two|not)(?:\s+one)?\s+of\s+(?:the\s+)?"
    r"(?:above|below|these|those|them|options|answers|choices|other)"
    r"|(?:the|all|none)\s+above|(?:listed|mentioned|given|stated)\s+above"
    r"|(?:all|both|no|none)\s+(?:(?:the|of\s+the)\s+)?(?:answers?|options?|choices?|statements?)(?:\s+(?:is|are))?"
    r"|(?:all|both|none|neither)\s+(?:is|are)\s+(?:correct|true|right|false|wrong|incorrect)"
    r"|no\s+(?:correct|right)\s+(?:answer|option|choice)"
    r"|выше(?:перечисленн|указанн|названн|приведенн|приведённ|упомянут)\w*|(?:ниже|)перечисленн\w*"
    r"|(?:указанн|названн|приведенн|приведённ|упомянут)\w*\s+(?:выше|ниже)|(?:выше|ниже)\s+(?:указанн|названн|привед)\w*"
    r"|(?:все|всё|оба|обе|любой|любое|никакой|ни\s+один|ни\s+одно|ни\s+одна|ни\s+одного|нет)(?:\s+из)?\s+"
    r"(?:эти\w*\s+|други\w*\s+|верн\w+\s+|правильн\w+\s+|предложенн\w+\s+|данн\w+\s+|представленн\w+\s+)*"
    r"(?:ответ|вариант|утверждени|предложенн|указанн|названн|приведенн|приведённ)\w*"
    r"|(?:все|оба|обе|ни\s+один|ни\s+одно|ни\s+одна)\s+(?:из\s+(?:них|этих|предложенн\w+)|(?:не\s*)?(?:верн|правильн)\w+)"
    r"|(?:верн|правильн)[ыо]\s+(?:все|всё|оба|обе)|(?:и\s+то,?\s+и|ни\s+то,?\s+ни)\s+другое"
    r"|предыдущ\w+\s+(?:ответ|вариант|утверждени)\w*|перв\w+\s+дв\w+\s+(?:ответ|вариант|утверждени)\w*"
    r")(?!\w)",
    re.IGNORECASE,
)


def option_texts(options: Sequence[object]) -> list[str | None]:
    """The texts of options, of numbers too; None for what only fills a place: null, NaN, N/A, blanks at the end.

    Raises:
        InputError: one is something else, such as an object.
    """
    texts = [_text(option) for option in options]
    last = max((place for place, text in enumerate(texts) if text and text.strip()), default=0)
    return texts[: last + 1] + [None] * (len(texts) - last - 1) if last else texts


def _text(value: object) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) != math.inf:
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"{value!r}: neither text nor a number")
    return None if value.strip().casefold() in _PADDING else value


@cache
def _letters_named(count: int) -> re.Pattern[str]:
    """What names some of so many options."""
    letters = _LATIN[:count] + _CYRILLIC[:count]
    big, small = f"[{letters}]", f"[{letters.lower()}]"
    return re.compile(
        rf"(?<!\w){big}\)?(?:{_AND}|\s*[/&+]\s*){big}(?!\w)"
        rf"|(?<!\w)(?i:{_SAID_OF_LETTERS}|{_SAID_OF_OPTIONS})\s+[«\"(]?{big}(?!\w)"
        rf"|(?<!\w)(?i:{_SAID_OF_OPTIONS})\s+\d(?!\w)"
        rf"|(?<!\w){big}\)?\s+(?:only|alone|верно|верны|верен|неверно|is|are)(?!\w)"
        rf"|^\s*(?i:both\s+|и\s+|ни\s+|neither\s+|только\s+)?{small}\)?{_AND}{small}\)?(?:\s+only)?[\s.]*$"
    )


def names_letters(choices: Sequence[str]) -> bool:
    """Whether an option names others by their letters or numbers: "Верно и A, и B", "only C"."""
    return any(map(_letters_named(len(choices)).search, choices))


def points_at_others(choices: Sequence[str]) -> bool:
    """Whether an option means others, by letters or by their place: "all of the above", "ни один из перечисленных"."""
    return names_letters(choices) or any(map(_OTHERS_MEANT.search, choices))
