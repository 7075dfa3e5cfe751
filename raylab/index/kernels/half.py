"""float16 inside kernels, which know no such type: stored as uint16 bits, widened where used."""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload


def stored(values: np.ndarray) -> np.ndarray:
    """What a kernel takes for an array: float16 as its bits, anything else as it is."""
    return values.view(np.uint16) if values.dtype == np.float16 else values


def as_float32(value: Any) -> Any:
    """A stored number as float32; finite values only. In kernels, what is below.

    There the exponent and mantissa of a half, moved to where a float32 has them, make a number 2^112 too
    small; the product is exact, subnormals included.
    """
    return np.float32(value.view(np.float16) if value.dtype == np.uint16 else value)


@overload(as_float32, inline="always")
def _as_float32(value: Any) -> Any:
    if value == types.uint16:

        def widen(value: Any) -> Any:
            bits = np.uint32(value)
            sign = (bits & np.uint32(0x8000)) << np.uint32(16)
            rest = (bits & np.uint32(0x7FFF)) << np.uint32(13)
            return np.uint32(sign | rest).view(np.float32) * np.float32(2.0**112)

        return widen

    def same(value: Any) -> Any:
        return np.float32(value)

    return same
