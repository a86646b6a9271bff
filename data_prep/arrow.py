"""numpy arrays as Arrow arrays over the same memory.

`pyarrow.array` and `to_numpy` would do, but import pandas at first use, which takes half a second in every process.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def as_arrow(values: NDArray[Any]) -> pa.Array:
    """Return a one-dimensional array of numbers without a copy, if it is contiguous."""
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def as_numpy(array: pa.Array) -> NDArray[Any]:
    """Return an Arrow array of numbers, none of them null, without a copy."""
    dtype = np.dtype(array.type.to_pandas_dtype())
    if not len(array):
        return np.empty(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)
