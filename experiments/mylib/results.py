"""Result files of the experiments, and the tables that are made from them.

A result file is one JSON object: ``schema``, ``created`` (UTC), ``command``, ``settings``, ``environment`` (machine,
versions and commit, as the benchmarks note them; a list if the rows have several) and ``rows``, one object per training
or measurement.
"""

from __future__ import annotations

import datetime
import json
import os
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment

from .saving import read_json, write_json

SCHEMA = "acsconv-cuda-experiment"
PLACE = Path("benchmarks", "results", "experiments")  # in a checkout
FOLDER = environment.ROOT / PLACE
KEYS = ("schema", "created", "command", "settings", "environment", "rows")


def write_results(
    path: str | os.PathLike,
    rows: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    environments: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes a result file, whole or not at all; its folder is made.

    Args:
        path: normally ``benchmarks/results/experiments/<experiment>-<size>.json``.
        rows: plain values by name; a number that is not finite is to be None.
        settings: what all rows have in common, as plain values.
        environments: those of the rows, as :func:`experiments.mylib.training.train` notes them; none: the present one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    occurring = [entry for index, entry in enumerate(environments) if entry not in environments[:index]]
    if not occurring:
        occurring = [environment.collect(torch.device("cuda" if torch.cuda.is_available() else "cpu"))]
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:  # started by python -m
        script = ["-m", spec.name.removesuffix(".__main__")]
    else:
        script = [
            os.path.relpath(sys.argv[0], environment.ROOT) if os.path.exists(sys.argv[0]) else sys.argv[0]
        ]
    result = {
        "schema": SCHEMA,
        "created": created,
        "command": shlex.join(["python", *script, *sys.argv[1:]]),
        "settings": dict(settings),
        "environment": occurring[0] if len(occurring) == 1 else occurring,
        "rows": [dict(row) for row in rows],
    }
    write_json(path, json.loads(json.dumps(result, default=str)))


def read_results(path: str | os.PathLike) -> dict[str, Any]:
    """The object of a result file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a result of an experiment.
    """
    path = Path(path)
    result = read_json(path)
    missing = [key for key in KEYS if key not in result]
    if missing or result["schema"] != SCHEMA:
        raise ValueError(f"{path} is no result of an experiment: no {', '.join(missing) or SCHEMA}")
    return result


def table(
    rows: Sequence[Mapping[str, Any]],
    by: Sequence[str] | Mapping[str, str],
    columns: Sequence[str] | Mapping[str, str],
    *,
    digits: int = 3,
) -> str:
    """A Markdown table: a line for each combination of ``by`` in order of appearance.

    Args:
        rows: of a result file.
        by: names of what distinguishes the lines; as a mapping, with the titles of their columns.
        columns: names of numbers; as a mapping, with their titles.
        digits: after the decimal point.

    A cell is the mean and the standard deviation of the rows of its line (``0.812 ± 0.010``), the number alone of a
    single row, and ``-`` where there is none; ``n`` counts the numbers, ``2-3`` where columns have more and less.
    """
    by, columns = (
        part if isinstance(part, Mapping) else {name: name for name in part} for part in (by, columns)
    )
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    lines = [
        [*by.values(), *columns.values(), "n"],
        ["---"] * len(by) + ["--:"] * (len(columns) + 1),
    ]
    for key, group in groups.items():
        numbers = [[row[name] for row in group if row.get(name) is not None] for name in columns]
        counts = sorted({len(values) for values in numbers})
        count = str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
        lines.append([*map(_word, key), *(_mean_and_spread(values, digits) for values in numbers), count])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _word(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _mean_and_spread(numbers: Sequence[float], digits: int) -> str:
    if not numbers:
        return "-"
    mean = f"{statistics.fmean(numbers):.{digits}f}"
    return mean if len(numbers) == 1 else f"{mean} ± {statistics.stdev(numbers):.{digits}f}"
