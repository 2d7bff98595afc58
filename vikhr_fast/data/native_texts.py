"""The forms in which texts come to the C++ code, none of them copied but for Arrow's views."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vikhr_fast import _native

IntArray: TypeAlias = npt.NDArray[np.int64]
Buffer: TypeAlias = bytes | bytearray | memoryview | npt.NDArray[np.uint8]
InvalidUtf8: TypeAlias = Literal["strict", "replace"]
Texts: TypeAlias = Sequence[str | bytes] | pa.Array | pa.ChunkedArray | tuple[Buffer, npt.NDArray[np.integer]]
"""str or bytes objects; a pyarrow string or binary array; or one UTF-8 buffer and its integer offsets [texts + 1]."""


def native_texts(texts: Texts) -> _native.Texts:
    """Texts for the C++ code. TypeError, ValueError where they are none or one is null."""
    if isinstance(texts, pa.ChunkedArray):
        starts = accumulate(map(len, texts.chunks), initial=0)
        return _native.Texts.from_buffers([arrow_buffers(*one) for one in zip(texts.chunks, starts, strict=False)])
    if isinstance(texts, pa.Array):
        return _native.Texts.from_buffers([arrow_buffers(texts)])
    if isinstance(texts, tuple) and len(texts) == 2 and isinstance(texts[1], np.ndarray):
        return _native.Texts.from_buffers([(cast(Buffer, texts[0]), as_int64(texts[1], "offsets"))])
    if isinstance(texts, (str, bytes)):
        raise TypeError("many texts are wanted, and this is one; put it into a list")
    return _native.Texts.from_sequence(texts)


def strings(texts: Texts) -> Iterator[str]:
    """Texts as str. ValueError, TypeError name the document that is none."""
    if isinstance(texts, (pa.Array, pa.ChunkedArray)):
        texts = texts.to_pylist()
    elif isinstance(texts, tuple) and len(texts) == 2 and isinstance(texts[1], np.ndarray):
        data, offsets = memoryview(cast(bytes, texts[0])), texts[1].tolist()
        texts = [bytes(data[start:end]) for start, end in pairwise(offsets)]
    for index, text in enumerate(texts):
        if isinstance(text, bytes):
            try:
                yield text.decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"document {index}: byte {error.start}: not valid UTF-8") from error
        elif text is None:
            raise ValueError(f"document {index} is null; drop or fill it")
        elif isinstance(text, str):
            yield text
        else:
            raise TypeError(f"document {index} is neither str nor bytes")


def arrow_buffers(array: pa.Array, first: int = 0) -> tuple[Buffer, IntArray]:
    """The text of a string or binary array, and where its values start; `first` is the number of its first one."""
    if pa.types.is_string_view(array.type) or pa.types.is_binary_view(array.type):
        array = array.cast(pa.large_binary())  # as Polars writes text
    is_large = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    if not (is_large or pa.types.is_string(array.type) or pa.types.is_binary(array.type)):
        raise TypeError(f"cannot encode a pyarrow array of {array.type}; cast it to large_string")
    if array.null_count > 0:
        index = first + array.is_null().index(True).as_py()
        raise ValueError(f"document {index} is null; drop or fill it")
    _, starts, text = array.buffers()
    if starts is None or len(array) == 0:
        return b"", np.zeros(1, dtype=np.int64)
    offsets = np.frombuffer(starts, dtype=np.int64 if is_large else np.int32)
    offsets = offsets[array.offset : array.offset + len(array) + 1]
    return text if text is not None else b"", offsets.astype(np.int64, copy=False)


def as_int64(values: Sequence[int] | npt.NDArray[np.integer], name: str) -> IntArray:
    """Integers with one axis as int64; ValueError where they are none."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.size > 0 and array.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be integers with one axis, not {array.dtype} of shape {array.shape}")
    return array.astype(np.int64, copy=False)


def replaces(errors: str) -> bool:
    """Whether invalid UTF-8 is to be replaced; ValueError for another word than the two."""
    if errors not in ("strict", "replace"):
        raise ValueError(f'errors is {errors!r}; it must be "strict" or "replace"')
    return errors == "replace"
