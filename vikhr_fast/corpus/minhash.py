"""MinHash signatures of texts: which shingles a text has, and which texts are worth comparing."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vikhr_fast import _native
from vikhr_fast.data.native_texts import IntArray, InvalidUtf8, Texts, as_int64, native_texts, replaces

Hashes = npt.NDArray[np.uint64]
Signatures = npt.NDArray[np.uint32]


class ShingleSets(NamedTuple):
    """The shingle sets of texts: set i is values[offsets[i] : offsets[i + 1]], ascending, never empty."""

    values: Hashes
    offsets: IntArray  # [texts + 1]
    is_short: npt.NDArray[np.bool_]
    """[texts] texts shorter than one shingle, whose only hash stands for the whole text."""


class MinHasher:
    """Shingles, MinHash signatures and LSH bands of texts, the same on every machine and for any number of threads.

    A text is read as words: runs of letters and digits, in lower case (simple case folding), ё read as е. Stress marks
    (U+0300, U+0301), soft hyphens and other format characters are passed over; й, ў, ї written with a combining mark
    are the same as written with one character; everything else separates words. No other normalisation is done.
    A shingle is `word:N`, N words one after another, or `char:N`, N characters of the words joined by single spaces.
    A text shorter than a shingle equals only texts with the same words, one without words only the same bytes.

    Shingles are 64-bit hashes: two different ones are taken for one with probability 2^-64.
    Two texts of Jaccard similarity J share a band with probability 1 - (1 - J^rows)^bands, rows = num_perm / bands.

    Args:
        num_perm: permutations, 1 to 4096.
        bands: divides num_perm.
        shingle: "word:N" or "char:N", N from 1 to 1000.
        seed: of the permutations, 0 to 2^64 - 1.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(self, num_perm: int = 120, bands: int = 20, shingle: str = "word:5", seed: int = 1) -> None:
        self.num_perm, self.bands, self.shingle, self.seed = num_perm, bands, shingle, seed
        self._native = _native.MinHasher(*parse_shingle(shingle), *checked(num_perm, bands, seed))

    def shingles(self, texts: Texts, threads: int = 0, errors: InvalidUtf8 = "strict") -> ShingleSets:
        """The shingle set of each text; `threads=0` uses every core.

        ValueError names the text and byte where one is not valid UTF-8; `errors="replace"` reads U+FFFD there, which
        separates words.
        """
        return ShingleSets(*self._native.shingles(native_texts(texts), replaces(errors), threads))

    def signatures(self, texts: Texts, threads: int = 0, errors: InvalidUtf8 = "strict") -> Signatures:
        """uint32 [texts, num_perm]: the least value of each permutation over a text's shingles. See `shingles`.

        The share of equal values of two signatures estimates the Jaccard similarity of the texts.
        """
        return self._native.signatures(native_texts(texts), replaces(errors), threads)

    def band_keys(self, sets: ShingleSets, threads: int = 0) -> Signatures:
        """uint32 [sets, bands]: sets share band b where they have the same key in column b.

        Short texts have keys too, which `deduplicate` does not use: they match by equality alone.
        """
        return self._native.band_keys(sets.values, sets.offsets, threads)

    def probability(self, jaccard: float | npt.NDArray[np.float64]) -> float | npt.NDArray[np.float64]:
        """How likely two texts of this similarity share a band: the S-curve."""
        return 1 - (1 - jaccard ** (self.num_perm // self.bands)) ** self.bands


def jaccard(sets: ShingleSets, pairs: Sequence[tuple[int, int]] | npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """float64 [pairs]: the exact Jaccard similarity of pairs of sets, [pairs, 2]; IndexError where there is no set."""
    numbers = as_int64(np.asarray(pairs).reshape(-1), "pairs").reshape(-1, 2)
    return _native.jaccard_of_pairs(sets.values, sets.offsets, numbers)


def parse_shingle(shingle: str) -> tuple[str, int]:
    """("word" or "char", N) of "word:N" or "char:N"."""
    unit, _, length = shingle.partition(":")
    if unit not in ("word", "char") or not (length.isascii() and length.isdecimal()):
        raise ValueError(f'shingle is {shingle!r}; it must be "word:N" or "char:N", as "word:5"')
    return unit, min(int(length), 2**31)


def checked(num_perm: int, bands: int, seed: int) -> tuple[int, int, int]:
    """The same numbers, where the C++ code can take them; it checks what they mean."""
    for name, value, limit in (("num_perm", num_perm, 2**32), ("bands", bands, 2**32), ("seed", seed, 2**64)):
        if not 0 <= value < limit:
            raise ValueError(f"{name} is {value}; it must not be negative or above {limit - 1}")
    return num_perm, bands, seed
