"""What tokens of two vocabularies have in common: the buckets of text that a KL between models of both compares.

Each token goes to its longest beginning that is a token of both. Of what isn't text, the tokens that end a document
have a bucket, and all others one; so has text whose beginning no token has in common.
"""

from collections.abc import Sequence

import numpy as np

from vikhr_fast.data.native_texts import IntArray
from vikhr_fast.errors import InputError


def common_buckets(own: Sequence[bytes], ref: Sequence[bytes], own_eos: int, ref_eos: int) -> tuple[IntArray, IntArray]:
    """The bucket of each token of the model, and of each of the reference's; every bucket has tokens of both.

    Args:
        own: what each token of the model adds to a text, empty where it is none.
        ref: likewise, of the reference.
        own_eos: the model's token that ends a document, -1 for none.
        ref_eos: the reference's.

    Raises:
        InputError: one has tokens that aren't text, and the other has none to compare these with.
    """
    numbers = {content: number for number, content in enumerate(sorted((set(own) & set(ref)) - {b""}))}
    end, other = len(numbers), len(numbers) + 1

    def bucket(content: bytes) -> int:
        lengths = range(len(content), 0, -1)
        return next((number for n in lengths if (number := numbers.get(content[:n])) is not None), other)

    sides = []
    for contents, eos in ((own, own_eos), (ref, ref_eos)):
        buckets = np.array([bucket(content) for content in contents], dtype=np.int64)
        if eos >= 0:
            buckets[eos] = end
        sides.append(buckets)
    have_end, have_other = ([bool((side == number).any()) for side in sides] for number in (end, other))
    if not all(have_end) or (any(have_other) and not all(have_other)):  # one bucket of both
        for side in sides:
            side[side == other] = end
        if any(have_end + have_other) and not all((side == end).any() for side in sides):
            raise InputError("one vocabulary has tokens that aren't text, the other none to compare them with")
    return sides[0], sides[1]
