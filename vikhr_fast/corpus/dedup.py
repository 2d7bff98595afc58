"""Near-duplicate removal: candidates by MinHash and LSH, each one proved by its exact Jaccard similarity."""

import mmap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from vikhr_fast import _native
from vikhr_fast.corpus.minhash import checked, parse_shingle
from vikhr_fast.data.native_texts import IntArray, InvalidUtf8, Texts, native_texts, replaces
from vikhr_fast.errors import InputError
from vikhr_fast.io.files import atomic_file

Clustering = Literal["star", "transitive"]


@dataclass(frozen=True)
class DedupSettings:
    """What counts as a near-duplicate, and how it is looked for. See `MinHasher` for the first four."""

    num_perm: int = 120
    bands: int = 20
    shingle: str = "word:5"
    seed: int = 1
    threshold: float = 0.8
    """Least Jaccard similarity of two texts' shingle sets, above 0 and at most 1."""
    clustering: Clustering = "star"


PRESETS = {
    "default": DedupSettings(),  # finds a pair of Jaccard 0.8 with probability .998
    "fineweb": DedupSettings(num_perm=112, bands=14),  # as FineWeb: .924
    "strict": DedupSettings(num_perm=120, bands=10, threshold=0.95),  # a pair of 0.95: .9996
}


class DedupStatistics(NamedTuple):
    """What a deduplication did."""

    texts: int
    kept: int
    identical: int
    """Texts with the same shingles as an earlier one, found without LSH."""
    short_texts: int
    """Texts shorter than one shingle."""
    candidates: int
    """Pairs that shared a band."""
    index_bytes: int
    """Memory that the index takes."""


class Deduplicated(NamedTuple):
    """Which texts to keep."""

    keep: npt.NDArray[np.bool_]  # [texts]
    clusters: IntArray
    """[texts] the number of the text kept in each one's place: its own where it is kept."""
    statistics: DedupStatistics


class DedupIndex:
    """Texts in batches, each compared with all before it; can be saved and gone on with.

    Two texts match when they share an LSH band and the exact Jaccard similarity of their shingle sets reaches the
    threshold; texts with equal sets always match.
      "star": a text that matches an earlier kept one is removed and belongs to the first such text, so that each
        removed text is itself near to the one kept for it. What has been decided stays decided.
      "transitive": chains of matches are one cluster, of which the first text is kept. A later text may join two
        clusters; then the later one's first text is removed after all.
    Either way no added text brings a removed one back, and threads and batches change nothing.

    Time: a text costs a look into each band, then one comparison for each kept text that shares a band with it.
    Copies of a text are found before that, however many. What can grow with the square of the number of texts is a
    family of texts that are all alike but under the threshold. Memory: about 8 bytes a shingle and 12 a band of the
    texts that are compared with: the kept ones, under "transitive" all different ones; while a batch is added, 8 more
    a band of its texts, and 8 more a shingle of the one being read: 1.4 GB for a text of 1 GB, with "char:5" 8 GB.
    """

    def __init__(self, settings: DedupSettings = PRESETS["default"]) -> None:
        self.settings = settings
        if settings.clustering not in ("star", "transitive"):
            raise ValueError(f'clustering is {settings.clustering!r}; it must be "star" or "transitive"')
        self._native = _native.DedupIndex(
            *parse_shingle(settings.shingle),
            *checked(settings.num_perm, settings.bands, settings.seed),
            settings.threshold,
            settings.clustering == "transitive",
        )

    def add(self, texts: Texts, threads: int = 0, errors: InvalidUtf8 = "strict") -> None:
        """Adds a batch: all of it or, on an exception, nothing. `threads=0` uses every core.

        ValueError names the text of the batch and the byte where one is not valid UTF-8; `errors="replace"` reads
        U+FFFD there, which separates words.
        """
        self._native.add(native_texts(texts), replaces(errors), threads)

    @property
    def index_bytes(self) -> int:
        """Memory that the index takes."""
        return self._native.counts()["index_bytes"]

    def match(self, texts: Texts, threads: int = 0, errors: InvalidUtf8 = "strict") -> IntArray:
        """[texts] the number of the text that would be kept in each one's place were it added next; -1 if itself.

        Changes nothing. ValueError under "transitive", where that is not decided yet; otherwise as `add`.
        """
        return self._native.match(native_texts(texts), replaces(errors), threads)

    def result(self) -> Deduplicated:
        """What to keep of all texts so far, in the order in which they were added."""
        clusters = self._native.clusters()
        return Deduplicated(clusters == np.arange(len(clusters)), clusters, DedupStatistics(**self._native.counts()))

    def save(self, path: Path) -> None:
        """Writes the index to a file that is complete or absent, with a checksum."""
        with atomic_file(path) as file:
            self._native.save(file.write)

    @classmethod
    def load(cls, path: Path) -> "DedupIndex":
        """Reads a saved index; InputError where the file is missing, damaged or something else."""
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                native = _native.DedupIndex.load(mapped)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; give a saved deduplication index") from error
        except ValueError as error:  # mmap raises it for an empty file
            raise InputError(f"{path}: {error}; make the index anew") from error
        unit, length, num_perm, bands, seed, threshold, is_transitive = native.settings()
        index = cls.__new__(cls)
        clustering: Clustering = "transitive" if is_transitive else "star"
        index.settings = DedupSettings(num_perm, bands, f"{unit}:{length}", seed, threshold, clustering)
        index._native = native
        return index


def deduplicate(
    texts: Texts,
    threshold: float | None = None,
    *,
    settings: DedupSettings | str = "default",
    threads: int = 0,
    errors: InvalidUtf8 = "strict",
) -> Deduplicated:
    """Which of the texts to keep, so that none of them is a near-duplicate of an earlier one.

    Args:
        texts: str or bytes objects, a pyarrow string array, or a UTF-8 buffer with offsets; the last two uncopied.
        threshold: instead of the settings' own (0.8 by default).
        settings: a preset's name ("default", "fineweb", "strict") or the settings themselves.
        threads: 0 uses every core. The result is the same for any number.
        errors: see `DedupIndex.add`.

    Returns:
        keep mask [texts], clusters [texts], statistics. See `DedupIndex` for what they mean.

    Raises:
        ValueError: a text that is not valid UTF-8, or settings out of range.
    """
    if isinstance(settings, str):
        if settings not in PRESETS:
            raise ValueError(f"no settings are called {settings!r}; there are {', '.join(PRESETS)}")
        settings = PRESETS[settings]
    if threshold is not None:
        settings = replace(settings, threshold=threshold)
    index = DedupIndex(settings)
    index.add(texts, threads, errors)
    return index.result()
