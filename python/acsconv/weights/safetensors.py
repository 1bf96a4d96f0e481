"""The safetensors format, as far as state_dicts need it; see https://huggingface.co/docs/safetensors.

A file is the length of its header (8 bytes, little-endian), the header (JSON: for each tensor ``dtype``, ``shape`` and
``data_offsets``, its first byte and the one after its last, counted from the header's end), and the tensors' bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import torch
from torch import Tensor

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def parse(content: bytes) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU, each with memory of its own.

    Raises:
        ValueError: it is damaged, or holds a dtype that is not read here.
    """
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    try:
        listed = json.loads(header)
        listed.pop("__metadata__", None)
        tensors, end = {}, 0
        for name, entry in sorted(listed.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape, (start, stop) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            if start != end or stop - start != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name} has bytes {start} to {stop} for {entry['dtype']} {shape}")
            tensors[name] = torch.empty(shape, dtype=dtype)
            tensors[name].view(-1).view(torch.uint8).copy_(_bytes(data[start:stop]))
            end = stop
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"no safetensors file, or one of another kind: {error!r}") from error
    if end != len(data):
        raise ValueError(f"no whole safetensors file: {len(data)} bytes of tensors, expected {end}")
    return tensors


def write(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A file of the tensors of a state_dict; ``metadata`` are words for people.

    Raises:
        ValueError: a dtype that is not written here.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    data = b""
    # Large items first: so each tensor begins at a multiple of its items' size.
    for name, value in sorted(state.items(), key=lambda item: -item[1].dtype.itemsize):
        if value.dtype not in _NAMES:
            raise ValueError(f"{name}: expected one of {', '.join(_DTYPES)}, got {value.dtype}")
        flat = value.detach().cpu().contiguous().view(-1)
        content = bytes(flat.view(torch.uint8).tolist())
        header[name] = {
            "dtype": _NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def _bytes(content: bytes) -> Tensor:
    return (
        torch.frombuffer(bytearray(content), dtype=torch.uint8)
        if content
        else torch.empty(0, dtype=torch.uint8)
    )
