"""Our own files: written whole or not at all, and read with errors that name them."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, SupportsFloat


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name when it is complete, or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON object; ValueError for numbers that are not finite."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with whole(path) as file:
        file.write(text.encode())


def read_json(path: Path) -> dict:
    """A JSON object; ValueError that names the file if it holds none."""
    try:
        found = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: no JSON object")
    return found


def claim(folder: Path, settings: dict, content: str, error: type[Exception]) -> None:
    """Notes in ``settings.json`` of a folder, which is made, how what it holds is made.

    Args:
        settings: plain values by name.
        content: what the folder holds, for the message.

    Raises:
        error: the note that is there has other settings; the message names each of them.
    """
    note = folder / "settings.json"
    settings = json.loads(json.dumps(settings))  # tuples are lists in the file
    if not note.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(note, settings)
        return
    found = read_json(note)
    missing = "nothing"
    differing = [
        f"{key} is {found.get(key, missing)!r} there and {settings.get(key, missing)!r} now"
        for key in {**found, **settings}
        if found.get(key, missing) != settings.get(key, missing)
    ]
    if differing:
        raise error(
            f"{folder} has {content} with other settings: {'; '.join(differing)}. Choose another folder, or "
            "remove this one"
        )


def finite(value: SupportsFloat | None) -> float | None:
    """As a number for JSON, which knows neither NaN nor infinity."""
    return float(value) if value is not None and math.isfinite(value) else None


def read_curve(path: str | os.PathLike, metric: str) -> dict[int, float]:
    """A column of a training's ``metrics.csv``: epoch -> value.

    Raises:
        ValueError: the log has no such column; the message names those it has.
    """
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or metric not in rows[0]:
        raise ValueError(
            f"{path} has no column {metric!r}; it has {', '.join(rows[0]) if rows else 'nothing'}"
        )
    return {int(row["epoch"]): float(row[metric]) for row in rows if row[metric]}
