"""Other people's files, read with errors that say what is wrong and where a whole one comes from."""

from __future__ import annotations

import pickle
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

# What numpy, zipfile and torch raise for files that end early or hold something else.
_DAMAGED = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def require(path: str | Path, source: str) -> Path:
    """``path``, if there is a file or a folder.

    Raises:
        FileNotFoundError: there is none; the message names it, and ``source``, where to get it.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing. {source}")
    return path


def read_npz(path: str | Path, names: Iterable[str], source: str) -> dict[str, np.ndarray]:
    """The arrays ``names`` of an .npz file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or lacks an array; the message names the file and ``source``, where to get it.
    """
    path = require(path, source)
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = sorted(set(names) - set(file.files))
            if not missing:
                return {name: file[name] for name in names}
            found = ", ".join(file.files) or "nothing"
    except _DAMAGED as error:
        raise ValueError(f"{path} is damaged or no .npz file ({_first_line(error)}). {source}") from error
    raise ValueError(f"{path} lacks the array {', '.join(missing)}; it holds {found}. {source}")


def read_checkpoint(path: str | Path, source: str) -> Mapping:
    """What ``torch.save`` wrote, tensors on the CPU; code in the file is not run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no mapping; the message names the file and ``source``, where to get it.
    """
    path = require(path, source)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise ValueError(f"{path} is damaged or no checkpoint ({_first_line(error)}). {source}") from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path}: expected a mapping, got {type(checkpoint).__name__}. {source}")
    return checkpoint


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
