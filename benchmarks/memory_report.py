"""Tables and plot of the memory suite (memory_suite.py): peak memory and time over the edge of the volume."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from implementations import ACSCONV
from result_file import MEMORY, OUT_OF_MEMORY, mebibytes, median, number, save_figure


def _networks(rows: Iterable[dict]) -> dict[str, dict[str, dict[int, dict]]]:
    """Rows of the memory suite: network -> implementation -> edge -> row."""
    found: dict[str, dict[str, dict[int, dict]]] = {}
    for row in rows:
        if row["family"] == MEMORY:
            found.setdefault(row["network"], {}).setdefault(row["implementation"], {})[row["edge"]] = row
    return found


def _grown(row: dict | None) -> str:
    if row is None:
        return ""
    if row["status"] != "ok":
        return OUT_OF_MEMORY if row["reason"].startswith(OUT_OF_MEMORY) else row["status"]
    return f"{mebibytes(row)} MiB, {number(median(row) / 1e3)} s"


def tables(rows: Iterable[dict]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Tables (title, header, rows of cells) of the memory suite: one per network, and one that compares.

    The last compares at the largest volume that all have computed, with acsconv 0.1.1, or without it with ours.
    """
    made, summary = [], []
    for network, members in _networks(rows).items():
        edges = sorted({edge for cells in members.values() for edge in cells})
        body = [[f"{edge}³", *(_grown(cells.get(edge)) for cells in members.values())] for edge in edges]
        made.append((f"{network}: peak memory and time of a training step", ["volume", *members], body))
        done = {
            name: {edge for edge, row in cells.items() if row["status"] == "ok"}
            for name, cells in members.items()
        }
        common = set.intersection(*done.values())
        other = members.get(ACSCONV) or next(iter(members.values()))
        for name, cells in members.items():
            ratios = ["-", "-", "-"]
            if common:
                edge = max(common)
                row, base = cells[edge], other[edge]
                ratios = [f"{edge}³", "-", f"{median(row) / median(base):.2f}"]
                if row["memory"]["bytes"] and base["memory"]["bytes"]:
                    ratios[1] = f"{row['memory']['bytes'] / base['memory']['bytes']:.2f}"
            largest = f"{max(done[name])}³" if done[name] else "none"
            summary.append([network, name, *ratios, largest])
    if summary:
        base = ACSCONV if any(row[1] == ACSCONV for row in summary) else "ours"
        header = ["network", "implementation", "at", f"memory / {base}", "time", "largest volume"]
        made.append((f"Memory and time over those of {base}", header, summary))
    return made


def lines(rows: Iterable[dict]) -> list[str]:
    """Terminal tables of the memory suite."""
    text = []
    for title, header, body in tables(rows):
        widths = [max(map(len, column)) for column in zip(header, *body)]
        text.append(title)
        for cells in (header, *body):
            text.append("  " + "  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip())
    return text


def plot(result: dict, path: Path) -> None:
    """PNG: peak memory and time of a training step over the volume's edge, a column per network. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    networks = _networks(result["rows"])
    names = list(dict.fromkeys(name for members in networks.values() for name in members))
    figure, axes = pyplot.subplots(
        2, len(networks), figsize=(4.2 * len(networks), 6), squeeze=False, sharex="col", layout="constrained"
    )
    quantities = (
        ("peak memory, GiB", lambda row: (row["memory"]["bytes"] or 0) / 2**30),
        ("time of a training step, s", lambda row: median(row) / 1e3),
    )
    for column, (network, members) in enumerate(networks.items()):
        for axis, (label, value) in zip(axes[:, column], quantities):
            for name, cells in members.items():
                good = [row for row in cells.values() if row["status"] == "ok"]
                style = {
                    "marker": "osD^vPX*"[names.index(name)],
                    "color": f"C{names.index(name)}",
                    "label": name,
                }
                axis.plot([row["edge"] for row in good], [value(row) for row in good], **style)
            axis.grid(alpha=0.3)
            axis.set_xticks(sorted({edge for cells in members.values() for edge in cells}))
            if column == 0:
                axis.set_ylabel(label, fontsize=9)
        limit = next(row for cells in members.values() for row in cells.values())["memory_limit"]
        if limit:
            axes[0, column].axhline(limit / 2**30, color="gray", linestyle="--", linewidth=0.8)
        for axis in axes[:, column]:
            axis.margins(y=0.1)
            axis.set_ylim(bottom=0)
        axes[0, column].set_title(network, fontsize=9)
        axes[1, column].set_xlabel("edge of the volume, voxels", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    save_figure(figure, result, path)
