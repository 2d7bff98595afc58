"""Near-duplicates on a Ray cluster, with the decisions of one machine.

Signatures are made in tasks, a part each; band keys are shuffled, so that paragraphs that share one meet in a bucket;
the shingle sets of candidates are shuffled again and compared exactly; what is kept is then decided here, in order.
Parts must be on storage that every node sees under the same path, and this package installed on every node. This
process holds 32 bytes a paragraph and 16 a pair of candidates. A family of n paragraphs that share a band but not
their words costs n² / 2 pairs. Lost workers are made up for by Ray, which repeats their tasks.
"""

import hashlib
import logging
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vikhr_fast import _native
from vikhr_fast.corpus.minhash import Hashes, MinHasher
from vikhr_fast.corpus.multipass_dedup import index_settings, write_owners
from vikhr_fast.corpus.paragraphs import numbers_of, paragraphs_of
from vikhr_fast.corpus.settings import DedupStage, Machine
from vikhr_fast.data.documents import read_part
from vikhr_fast.data.native_texts import IntArray
from vikhr_fast.errors import InputError

_DIGEST = np.dtype("V16")
_PAIRS_AT_ONCE = 1 << 20

Pairs = npt.NDArray[np.int64]  # [pairs, 2], the smaller number first


def find_owners(parts: list[Path], settings: DedupStage, scratch: Path, machine: Machine) -> None:
    """Decides about every paragraph of the parts; the same files as those of `Passes`.

    Raises:
        InputError: Ray is not installed, or there is no cluster at the address.
    """
    ray = connected(machine)
    buckets = max(8, 2 * int(ray.cluster_resources().get("CPU", 1)), len(parts) // 4)
    items = [{"part": number, "path": str(path.resolve())} for number, path in enumerate(parts)]
    paths = ray.data.from_items(items, override_num_blocks=len(items))
    signed = paths.map_batches(_sign, batch_size=1, batch_format="pyarrow", fn_args=(settings,)).materialize()
    numbers, digests, is_short = _first_columns(signed)
    firsts = _firsts(numbers, digests)
    looked_for = numbers[(firsts == numbers) & ~is_short]

    pairs = np.empty((0, 2), np.int64)
    if len(looked_for) > 1:
        rows = signed.map_batches(_band_rows, batch_format="pyarrow", fn_args=(ray.put(looked_for), buckets))
        grouped = rows.groupby("bucket", num_partitions=buckets)
        pairs = _collected_pairs(grouped.map_groups(_candidates, batch_format="pyarrow"))
    if len(pairs):
        bucket_of = pairs[:, 0] % buckets
        by_bucket = {bucket: ray.put(pairs[bucket_of == bucket]) for bucket in np.unique(bucket_of).tolist()}
        needed = ray.put(_needed(pairs, bucket_of))
        sets = paths.map_batches(_sets, batch_size=1, batch_format="pyarrow", fn_args=(settings, needed))
        grouped = sets.groupby("bucket", num_partitions=buckets)
        arguments = (by_bucket, settings.threshold)
        pairs = _collected_pairs(grouped.map_groups(_similar, batch_format="pyarrow", fn_args=arguments))
    owners = _decided(firsts, pairs)
    for part in range(len(parts)):
        low, high = np.searchsorted(numbers, [part << 32, (part + 1) << 32])
        write_owners(scratch, part, owners[low:high])


def connected(machine: Machine) -> Any:
    """The package, connected to the cluster; InputError where either is missing."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise InputError("engine ray: needs the package ray; pip install 'vikhr-fast[ray]'") from None
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        cpus = machine.threads or None
        try:
            if machine.ray_address == "local":
                ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
            else:
                _check_port(machine.ray_address)
                ray.init(address=machine.ray_address, log_to_driver=False)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"ray_address {machine.ray_address}: no cluster: {reason}; start one, or take local"
            ) from None
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    return ray


def _check_port(address: str) -> None:
    """OSError where nobody listens: Ray itself tries for minutes and then ends the process."""
    match = re.fullmatch(r"([^/]+):(\d+)", address)
    if match:
        socket.create_connection((match[1], int(match[2])), timeout=10).close()


def _hasher(settings: DedupStage) -> MinHasher:
    chosen = index_settings(settings)
    return MinHasher(chosen.num_perm, chosen.bands, chosen.shingle, chosen.seed)


def _paragraphs(item: pa.Table, settings: DedupStage) -> tuple[IntArray, list[str]]:
    part = item["part"][0].as_py()
    texts = paragraphs_of(read_part(Path(item["path"][0].as_py())), settings)
    return numbers_of(part, len(texts)), texts


def _sign(item: pa.Table, settings: DedupStage) -> pa.Table:
    """Number, digest of the shingle set, and band keys of each paragraph of a part."""
    numbers, texts = _paragraphs(item, settings)
    hasher = _hasher(settings)
    sets = hasher.shingles(texts, threads=1)
    keys = hasher.band_keys(sets, threads=1)
    ends = sets.offsets
    digests = [
        hashlib.blake2b(sets.values[ends[i] : ends[i + 1]].tobytes(), digest_size=16).digest()
        for i in range(len(texts))
    ]
    return pa.table(
        {
            "number": numbers,
            "digest": pa.array(digests, pa.binary(16)),
            "is_short": pa.array(sets.is_short),
            "keys": pa.FixedSizeListArray.from_arrays(pa.array(keys.reshape(-1)), settings.bands),
        }
    )


def _first_columns(signed: Any) -> tuple[IntArray, npt.NDArray[np.void], npt.NDArray[np.bool_]]:
    """Numbers, digests and shortness of all paragraphs, by number."""
    parts: list[tuple[Any, Any, Any]] = [(np.empty(0, np.int64), np.empty(0, _DIGEST), np.empty(0, bool))]
    for table in _tables(signed):
        digests = np.array(table["digest"].to_pylist(), "S16").view(_DIGEST) if table.num_rows else parts[0][1]
        parts.append((table["number"].to_numpy(), digests, table["is_short"].to_numpy()))
    numbers, digests, is_short = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(numbers)
    return numbers[order], digests[order], is_short[order]


def _tables(dataset: Any) -> Iterator[pa.Table]:
    return (batch for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"))


def _firsts(numbers: IntArray, digests: npt.NDArray[np.void]) -> IntArray:
    """[paragraphs] the first paragraph with the same shingle set."""
    if not len(numbers):
        return numbers
    words = np.ascontiguousarray(digests).view(np.uint64).reshape(-1, 2)
    order = np.lexsort((numbers, words[:, 1], words[:, 0]))
    starts = np.concatenate([[True], (words[order][1:] != words[order][:-1]).any(axis=1)])
    firsts = np.empty_like(numbers)
    firsts[order] = numbers[order][np.flatnonzero(starts)[np.cumsum(starts) - 1]]
    return firsts


def _band_rows(signed: pa.Table, wanted_ref: Any, buckets: int) -> pa.Table:
    """A row for each band of each wanted paragraph: its bucket, band with key, and number."""
    wanted: IntArray = _fetched(wanted_ref)
    numbers = signed["number"].to_numpy()
    keys = signed["keys"].combine_chunks()
    bands = keys.type.list_size
    table = np.asarray(keys.flatten()).reshape(-1, bands).astype(np.uint64)
    places = np.minimum(np.searchsorted(wanted, numbers), max(len(wanted) - 1, 0))
    is_wanted = wanted[places] == numbers if len(wanted) else np.zeros(len(numbers), bool)
    banded = table[is_wanted] | np.arange(bands, dtype=np.uint64) << np.uint64(32)
    values = banded.reshape(-1)
    return pa.table(
        {
            "bucket": (values * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)).astype(np.int64) % buckets,
            "key": values,
            "number": np.repeat(numbers[is_wanted], bands),
        }
    )


def _candidates(rows: pa.Table) -> Iterator[pa.Table]:
    """All pairs of paragraphs that share a key of this bucket."""
    numbers, keys = rows["number"].to_numpy(), rows["key"].to_numpy()
    order = np.lexsort((numbers, keys))
    numbers, keys = numbers[order], keys[order]
    edges = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]]))
    found: list[Pairs] = []
    size = 0
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        for row in range(start, end - 1):
            found.append(np.stack([np.full(end - row - 1, numbers[row]), numbers[row + 1 : end]], axis=1))
            size += end - row - 1
            if size >= _PAIRS_AT_ONCE:
                yield _pair_table(np.unique(np.concatenate(found), axis=0))
                found, size = [], 0
    yield _pair_table(np.unique(np.concatenate([np.empty((0, 2), np.int64), *found]), axis=0))


def _pair_table(pairs: Pairs) -> pa.Table:
    return pa.table({"first": pairs[:, 0], "second": pairs[:, 1]})


def _collected_pairs(dataset: Any) -> Pairs:
    """The different pairs, ordered."""
    found = [np.empty((0, 2), np.int64)]
    for table in _tables(dataset):
        if table.num_rows:
            found.append(np.stack([table["first"].to_numpy(), table["second"].to_numpy()], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _needed(pairs: Pairs, bucket_of: IntArray) -> Pairs:
    """[rows, 2] paragraphs, ascending, and a bucket that needs their shingles."""
    rows = np.stack([pairs.T.reshape(-1), np.tile(bucket_of, 2)], axis=1)
    return np.unique(rows, axis=0)


def _sets(item: pa.Table, settings: DedupStage, needed_ref: Any) -> pa.Table:
    """The shingle sets of a part's paragraphs, a row for each bucket that needs them."""
    needed: Pairs = _fetched(needed_ref)
    part = item["part"][0].as_py()
    low, high = np.searchsorted(needed[:, 0], [part << 32, (part + 1) << 32])
    own = needed[low:high]
    sets: list[Hashes] = []
    if len(own):
        _, texts = _paragraphs(item, settings)
        chosen, places = np.unique(own[:, 0] & 0xFFFFFFFF, return_inverse=True)
        found = _hasher(settings).shingles([texts[index] for index in chosen.tolist()], threads=1)
        sets = [found.values[found.offsets[place] : found.offsets[place + 1]] for place in places.tolist()]
    return pa.table({"bucket": own[:, 1], "number": own[:, 0], "shingles": pa.array(sets, pa.large_list(pa.uint64()))})


def _similar(rows: pa.Table, pairs_by_bucket: dict[int, Any], threshold: float) -> pa.Table:
    """The pairs of a bucket that reach the threshold."""
    pairs: Pairs = _fetched(pairs_by_bucket[rows["bucket"][0].as_py()])
    numbers = rows["number"].to_numpy()
    order = np.argsort(numbers)
    lists = rows["shingles"].combine_chunks()
    offsets = np.asarray(lists.offsets)
    values = np.asarray(lists.values)
    indices = order[np.searchsorted(numbers[order], pairs)].astype(np.int64)
    similarity = _native.jaccard_of_pairs(values, offsets.astype(np.int64), np.ascontiguousarray(indices))
    return _pair_table(pairs[similarity >= threshold])


def _fetched(reference: Any) -> Any:
    import ray

    return ray.get(reference)


def _decided(firsts: IntArray, similar: Pairs) -> IntArray:
    """[paragraphs] what is kept for each: the first earlier similar one that is kept itself, in order."""
    owners: dict[int, int] = {}
    for first, second in similar[np.lexsort((similar[:, 0], similar[:, 1]))].tolist():
        # A paragraph that is removed removes nothing.
        if first not in owners and second not in owners:
            owners[second] = first
    if not owners:
        return firsts
    removed = np.array(sorted(owners), np.int64)
    kept = np.array([owners[number] for number in removed.tolist()], np.int64)
    places = np.minimum(np.searchsorted(removed, firsts), len(removed) - 1)
    return np.where(removed[places] == firsts, kept[places], firsts)
