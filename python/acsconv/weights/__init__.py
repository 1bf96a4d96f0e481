"""Trained weights that come with this package; ``docs/pretrained.md`` says what they are.

``index.json`` lists them: the file, its SHA-256, the names of its network's classes. The files are safetensors, which
:mod:`.safetensors` reads without the package of that name. ``experiments/poc/publish.py`` adds more.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from torch import Tensor

from .safetensors import parse

FOLDER = Path(__file__).resolve().parent


def entries() -> dict[str, dict]:
    """What there is: name -> ``file``, ``sha256``, ``classes`` (names of the last layer's channels)."""
    return json.loads((FOLDER / "index.json").read_text())


def load(name: str) -> dict[str, Tensor]:
    """The state_dict of a name, on the CPU.

    Raises:
        ValueError: there is no such name, or its file is not the one that was published.
    """
    known = entries()
    if name not in known:
        raise ValueError(f"expected one of {', '.join(map(repr, known))}, got {name!r}")
    path = FOLDER / known[name]["file"]
    if not path.is_file():
        raise ValueError(f"{path}, the weights {name!r}, is missing; install the package again")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != known[name]["sha256"]:
        raise ValueError(f"{path}, the weights {name!r}, is damaged: its SHA-256 is not that of index.json")
    return parse(content)
