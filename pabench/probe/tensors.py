"""The safetensors format, written and read with numpy alone.

The format is an 8-byte little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the raw
tensors. The safetensors library's numpy side has no bfloat16, which half of the engines want: hence this file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
DTYPES = tuple(_CODES)


def write_tensors(tensors: dict[str, Array], path: Path, dtype: str) -> None:
    """Write float32 `tensors`, rounded to `dtype`, to the safetensors file `path`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs, end = [], 0
    for name, tensor in tensors.items():
        blobs.append((_bfloat16_bits(tensor) if dtype == "bfloat16" else tensor.astype(dtype)).tobytes())
        start, end = end, end + len(blobs[-1])
        header[name] = {"dtype": _CODES[dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.writelines(blobs)


def read_tensors(path: Path) -> dict[str, Array]:
    """Tensors of the safetensors file `path`, as float32 whatever they are stored as."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        raw = data[start + first: start + end]
        if entry["dtype"] == "BF16":
            flat = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            flat = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[entry["dtype"]]).astype(np.float32)
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def rounded(tensor: Array, dtype: str) -> Array:
    """`tensor` rounded to `dtype` and back to float32."""
    if dtype == "bfloat16":
        return (_bfloat16_bits(tensor).astype(np.uint32) << 16).view(np.float32)
    return tensor.astype(dtype).astype(np.float32)


def _bfloat16_bits(tensor: Array) -> NDArray[np.uint16]:
    """Round to nearest even: numpy has no bfloat16, so the upper half of the float32 is kept."""
    bits = np.ascontiguousarray(tensor).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
