"""The learner of byte-level merges against a plain rewriting of what it is to learn."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast._native import ByteExtender, WordCounts

Merge = tuple[bytes, bytes]
CLASSES = {"a": 0, "b": 0, ",": 1, "б": 2, "я": 2, "日": 3, "\u0301": 2**32 - 1}  # digits join nothing
ALPHABET = "aabбя日\U0001f600\U0001f601\U0001f642,1\u0301 "
PART = re.compile(rb"[\xc0-\xff][\x80-\xbf]{0,2}|[\x80-\xbf]{1,3}")


def encode(word: bytes, tokens: Sequence[bytes], merges: Sequence[Merge], keeps_whole: bool) -> list[bytes]:
    """Tokens of a word, b"" for a byte that is none: the first merge of the list, the leftmost of its places, again."""
    if keeps_whole and word in tokens:
        return [word]
    parts = [word[place : place + 1] if word[place : place + 1] in tokens else b"" for place in range(len(word))]
    while found := [(merges.index(pair), place) for place, pair in enumerate(pairwise(parts)) if pair in merges]:
        place = min(found)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def may_be_token(token: bytes, most: int) -> bool:
    rest = token.removeprefix(b" ")
    try:
        text = rest.decode()
    except UnicodeDecodeError:
        return PART.fullmatch(rest) is not None
    kinds = [CLASSES.get(character) for character in text]
    return bool(text) and None not in kinds and len({*kinds} - {2**32 - 1}) <= 1 and len(token.decode()) <= most


def naive(
    tokens: list[bytes], merges: list[Merge], words: dict[bytes, int], most: int, keeps_whole: bool, count: int
) -> list[tuple[bytes, bytes, int]]:
    """Encode all words, take the most frequent pair that may become a token, and again."""
    tokens, merges, learnt = list(tokens), list(merges), list[tuple[bytes, bytes, int]]()
    while len(learnt) < count:
        pairs: Counter[Merge] = Counter()
        for word, occurrences in words.items():
            for left, right in pairwise(encode(word, tokens, merges, keeps_whole)):
                if left and right and left + right not in tokens and may_be_token(left + right, most):
                    pairs[left, right] += occurrences
        best = min(pairs, key=lambda pair: (-pairs[pair], len(b"".join(pair)), b"".join(pair)), default=None)
        if best is None or pairs[best] < 2:
            break
        learnt.append((*best, pairs[best]))
        merges.append(best)
        tokens.append(b"".join(best))
    return learnt


def make(tokens: list[bytes], merges: list[Merge], most: int, keeps_whole: bool) -> ByteExtender:
    places = [(tokens.index(left), tokens.index(right)) for left, right in merges]
    return ByteExtender(tokens, places, {ord(one): kind for one, kind in CLASSES.items()}, most, keeps_whole)


@settings(max_examples=500, deadline=None)
@given(
    words=st.dictionaries(
        st.text(ALPHABET, min_size=1, max_size=10).map(str.encode), st.integers(1, 4), min_size=1, max_size=12
    ),
    joins=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=8),
    whole=st.lists(st.text("aabбя ", min_size=2, max_size=4).map(str.encode), max_size=3),
    missing=st.sampled_from([b"", "я".encode()[1:], b"a", "日".encode()[1:2]]),
    most=st.integers(2, 16),
    keeps_whole=st.booleans(),
)
def test_learns_what_the_definition_learns(
    words: dict[bytes, int],
    joins: list[tuple[int, int]],
    whole: list[bytes],
    missing: bytes,
    most: int,
    keeps_whole: bool,
) -> None:
    tokens = [bytes([byte]) for byte in sorted({*ALPHABET.encode()}) if bytes([byte]) != missing]
    merges: list[Merge] = []
    for left, right in joins:
        pair = (tokens[left % len(tokens)], tokens[right % len(tokens)])
        if pair not in merges:
            merges.append(pair)
            tokens += [b"".join(pair)] if b"".join(pair) not in tokens else []
    tokens = list(dict.fromkeys([*tokens, *whole]))  # the latter without merges that lead to them, perhaps
    counts = WordCounts(1000)
    counts.add_words(list(words.items()))
    counts.sort()
    extender = make(tokens, merges, most, keeps_whole)
    extender.add_words(counts)
    learnt = extender.learn(3) + extender.learn(9)
    assert learnt == naive(tokens, merges, words, most, keeps_whole, 12)
    all_tokens = [*tokens, *(left + right for left, right, _ in learnt)]
    all_merges = [*merges, *((left, right) for left, right, _ in learnt)]
    assert len(set(all_tokens)) == len(all_tokens)
    for left, right, _ in learnt:
        assert encode(left + right, all_tokens, all_merges, keeps_whole=False) == [left + right]


def test_a_word_that_is_kept_whole_teaches_nothing() -> None:
    words = WordCounts(1000)
    words.add_words([(b"aba", 9), (b"bb", 2)])
    for keeps_whole, expected in ((False, [b"ab", b"bb"]), (True, [b"bb"])):
        extender = make([b"a", b"b", b"aba"], [], 16, keeps_whole)
        extender.add_words(words)
        assert [left + right for left, right, _ in extender.learn(5)] == expected  # "aba" is a token already


def test_merges_of_no_tokens_are_refused() -> None:
    for pair, message in (((0, 2), "a merge of no token"), ((-1, 0), "a merge of no token"), ((0, 1), "to no token")):
        with pytest.raises(ValueError, match=message):
            ByteExtender([b"a", b"b"], [pair], {}, 16, False)
