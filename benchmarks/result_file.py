"""Result files of benchmarks/bench.py: their form, how rows are grouped and compared, how numbers are written.

A result is one JSON object. ``rows`` holds one object per case, pass, dtype, layout and implementation:
``status`` is ``ok``, ``wrong`` (error above its limit: neither timed nor averaged) or ``failed`` (with a
``reason``); ``time`` is in milliseconds, ``memory`` in bytes, ``ceilings`` in FLOP/s and B/s of the same run,
``ceiling_share`` the least possible time by them over the median."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from implementations import OURS, REFERENCE

SCHEMA = "acsconv-cuda-benchmark"
SCHEMA_VERSION = 1
TOP_KEYS = (
    "schema",
    "schema_version",
    "created",
    "command",
    "settings",
    "environment",
    "warnings",
    "notes",
    "rows",
)
NETWORK = "network"  # the family of rows that are whole networks
MEMORY = "memory"  # the family of rows that are whole networks at growing volumes, see memory_suite.py
OUT_OF_MEMORY = "out of memory"  # how the reason of a row begins that failed for that
GROUP_KEYS = ("case", "pass", "dtype", "layout")
ROW_KEYS = (
    *GROUP_KEYS,
    "description",
    "family",
    "implementation",
    "status",
    "reason",
    "time",
    "memory",
    "error",
    "limit",
    "flops",
    "traffic",
    "ceiling_share",
)


def validate(result: dict) -> None:
    """ValueError that names what is missing or of another version."""
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise ValueError(f"not a result of this benchmark: no schema {SCHEMA!r}")
    if result.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"schema version {result.get('schema_version')!r}; this code reads {SCHEMA_VERSION}")
    missing = [key for key in TOP_KEYS if key not in result]
    for row in result.get("rows", []):
        missing += [f"rows[].{key}" for key in ROW_KEYS if key not in row]
    if missing:
        raise ValueError(f"result lacks {', '.join(sorted(set(missing)))}")


def save(result: dict, path: Path) -> None:
    """Write a result, after checking it; folders are made."""
    validate(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def load(path: Path) -> dict:
    """Read a result; ValueError if it is not one."""
    try:
        result = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    validate(result)
    return result


def is_ours(name: str) -> bool:
    return name == REFERENCE or name.startswith(f"{OURS} ")


def median(row: dict) -> float:
    """Milliseconds: kernels alone on a GPU, the call on a CPU."""
    return row["time"].get("device", row["time"]["wall"])["median"]


def groups(rows: Iterable[dict]) -> dict[tuple, list[dict]]:
    """Rows that compete: (case, pass, dtype, layout) -> rows, in order of appearance."""
    grouped: dict[tuple, list[dict]] = {}
    for row in rows:
        grouped.setdefault(tuple(row[key] for key in GROUP_KEYS), []).append(row)
    return grouped


def baseline(group: list[dict]) -> dict | None:
    """What others are compared with: our first backend that has a right result, as ``auto`` takes it."""
    return next((row for row in group if is_ours(row["implementation"]) and row["status"] == "ok"), None)


def without_memory(rows: Iterable[dict]) -> list[dict]:
    """The rows of all suites but the memory suite, which has tables and a plot of its own."""
    return [row for row in rows if row["family"] != MEMORY]


def number(value: float) -> str:
    """Three or four digits, whatever the size."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def mebibytes(row: dict) -> str:
    return (
        "-"
        if row["memory"] is None or row["memory"]["bytes"] is None
        else f"{row['memory']['bytes'] / 2**20:.1f}"
    )


def save_figure(figure, result: dict, path: Path) -> None:
    """Write a figure of matplotlib, under a title that says what it was measured on; folders are made."""
    from matplotlib import pyplot

    environment = result["environment"]
    figure.suptitle(
        f"{environment['machine']}, {environment['threads']} threads, torch {environment['torch']}",
        fontsize=9,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
