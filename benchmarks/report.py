"""Result files and what is made from them: table, comparison, Markdown, plot.

    python benchmarks/report.py RESULT.json [--markdown] [--plot FILE.png] [--compare OLD.json]

A result is one JSON object. ``rows`` holds one object per case, pass, dtype, layout and implementation:
``status`` is ``ok``, ``wrong`` (error above its limit: neither timed nor averaged) or ``failed`` (with a
``reason``); ``time`` is in milliseconds, ``memory`` in bytes, ``ceilings`` in FLOP/s and B/s of the same run,
``ceiling_share`` the least possible time by them over the median."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from harness import geometric_mean
from implementations import ACSCONV, OURS, REFERENCE

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
MEAN_KEYS = ("pass", "dtype", "layout", "implementation", "family")
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


# -- files ------------------------------------------------------------------------------------------


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


# -- numbers ----------------------------------------------------------------------------------------


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


def means(rows: Iterable[dict]) -> list[dict]:
    """Geometric means of (time / ours) and of (peak memory / ours) per class of layer, and over all layers.

    One object per pass, dtype, layout, implementation and class; ``memory`` is None where not measured.
    """
    ratios: dict[tuple, list[tuple[float, float | None]]] = {}
    for group in groups(without_memory(rows)).values():
        best = baseline(group)
        for row in group if best is not None else ():
            if row is best or row["status"] != "ok":
                continue
            memory = None
            if row["memory"]["bytes"] and best["memory"]["bytes"]:
                memory = row["memory"]["bytes"] / best["memory"]["bytes"]
            for family in {row["family"], NETWORK if row["family"] == NETWORK else "all layers"}:
                key = (row["pass"], row["dtype"], row["layout"], row["implementation"], family)
                ratios.setdefault(key, []).append((median(row) / median(best), memory))
    return [
        {
            **dict(zip(MEAN_KEYS, key, strict=True)),
            "time": geometric_mean([time for time, _ in values]),
            "memory": geometric_mean(kept) if (kept := [m for _, m in values if m]) else None,
            "cases": len(values),
        }
        for key, values in ratios.items()
    ]


def mean_tables(rows: Iterable[dict]) -> list[tuple[str, list[str], list[list[str]]]]:
    """The same as tables (title, header, rows of cells): classes as columns, passes and implementations as
    rows.
    """
    found = means(rows)
    tables = []
    for dtype, layout in dict.fromkeys((mean["dtype"], mean["layout"]) for mean in found):
        here = [mean for mean in found if (mean["dtype"], mean["layout"]) == (dtype, layout)]
        counts: dict[str, int] = {}
        for mean in here:
            counts[mean["family"]] = max(counts.get(mean["family"], 0), mean["cases"])
        families = sorted(counts, key=lambda family: (family == NETWORK, family == "all layers"))
        header = ["pass", "implementation", *(f"{family} ({counts[family]})" for family in families)]
        for quantity, title in (("time", "time"), ("memory", "peak memory")):
            values = {(mean["pass"], mean["implementation"], mean["family"]): mean[quantity] for mean in here}
            body = []
            for pass_name, name in dict.fromkeys(key[:2] for key in values):
                cells = [values.get((pass_name, name, family)) for family in families]
                body.append([pass_name, name, *("-" if cell is None else f"{cell:.2f}" for cell in cells)])
            tables.append(
                (f"Geometric mean of {title} / ours, {dtype}, {layout} (number of layers)", header, body)
            )
    return tables


# -- growing volumes --------------------------------------------------------------------------------


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
    return f"{_mebibytes(row)} MiB, {_number(median(row) / 1e3)} s"


def memory_tables(rows: Iterable[dict]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Tables (title, header, rows of cells) of the memory suite: one per network, and one that compares.

    The last compares at the largest volume that all have computed, with acsconv 0.1.1, or without it with ours.
    """
    tables, summary = [], []
    for network, members in _networks(rows).items():
        edges = sorted({edge for cells in members.values() for edge in cells})
        body = [[f"{edge}³", *(_grown(cells.get(edge)) for cells in members.values())] for edge in edges]
        tables.append((f"{network}: peak memory and time of a training step", ["volume", *members], body))
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
        tables.append((f"Memory and time over those of {base}", header, summary))
    return tables


# -- text -------------------------------------------------------------------------------------------

HEADER = (
    f"  {'pass':8}{'implementation':30}{'median ms':>10}  {'IQR':19}{'/ ours':>7}{'GFLOP/s':>9}{'ceiling':>8}"
    f"{'peak MiB':>10}{'error':>9}  match"
)


def _number(value: float) -> str:
    """Three or four digits, whatever the size."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _mebibytes(row: dict) -> str:
    return (
        "-"
        if row["memory"] is None or row["memory"]["bytes"] is None
        else f"{row['memory']['bytes'] / 2**20:.1f}"
    )


def table_lines(rows: list[dict]) -> list[str]:
    """Terminal table of some cases, grouped by case."""
    lines, title = [], None
    for group in groups(rows).values():
        first, best = group[0], baseline(group)
        new_title = f"{first['case']}  {first['description']}  ({first['dtype']}, {first['layout']})"
        if new_title != title:
            title = new_title
            lines.append(title)
        for row in group:
            start = f"  {row['pass']:8}{row['implementation']:30}"
            if row["status"] != "ok":
                verdict = "WRONG, not published: " if row["status"] == "wrong" else ""
                lines.append(f"{start}{'-':>10}  {verdict}{row['reason']}")
                continue
            time = row["time"].get("device", row["time"]["wall"])
            quartiles = f"[{_number(time['q1'])}, {_number(time['q3'])}]"
            ratio = f"{median(row) / median(best):.2f}x" if best else "-"
            rate = f"{row['flops'] / median(row) / 1e6:.0f}" if row["flops"] else "-"
            share = f"{row['ceiling_share']:.0%}" if row["ceiling_share"] else "-"
            lines.append(
                f"{start}{_number(time['median']):>10}  {quartiles:19}{ratio:>7}{rate:>9}{share:>8}"
                f"{_mebibytes(row):>10}{max(row['error'].values()):>9.1e}  ok"
            )
            if "device" in row["time"]:
                lines.append(
                    f"  {'':8}{'  with launches and Python':30}{_number(row['time']['wall']['median']):>10}"
                )
    return lines


def memory_lines(rows: Iterable[dict]) -> list[str]:
    """Terminal tables of the memory suite."""
    lines = []
    for title, header, body in memory_tables(rows):
        widths = [max(map(len, column)) for column in zip(header, *body)]
        lines.append(title)
        for cells in (header, *body):
            lines.append("  " + "  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip())
    return lines


def mean_lines(rows: list[dict]) -> list[str]:
    """Terminal tables of the geometric means."""
    lines = []
    for title, header, body in mean_tables(rows):
        lines.append(title)
        for cells in (header, *body):
            widths = [max(len(name), 5) for name in header[2:]]
            numbers = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells[2:], widths, strict=True))
            lines.append(f"  {cells[0]:8}{cells[1]:30}{numbers}")
    return lines


def compare(new: dict, old: dict) -> tuple[list[str], float | None]:
    """Lines that set a result beside an older one, and the largest time ratio new / old among our rows (or
    None).

    Ratios are also given after division by the drift of the machine's matrix product between the two runs.
    """
    lines = []
    for key in ("machine", "threads", "torch", "device", "commit"):
        if new["environment"].get(key) != old["environment"].get(key):
            lines.append(f"  {key}: {old['environment'].get(key)} -> {new['environment'].get(key)}")
    before = {(*(row[k] for k in GROUP_KEYS), row["implementation"]): row for row in old["rows"]}
    ratios: dict[str, list[float]] = {}
    worst = None
    for row in new["rows"]:
        earlier = before.get((*(row[k] for k in GROUP_KEYS), row["implementation"]))
        if earlier is None or row["status"] != "ok" or earlier["status"] != "ok":
            continue
        ratio = median(row) / median(earlier)
        after = ""
        if "ceilings" in row and "ceilings" in earlier:
            drift = earlier["ceilings"]["matrix product"] / row["ceilings"]["matrix product"]
            after = f"  ({ratio / drift:.2f}x after drift)"
        ratios.setdefault(row["implementation"], []).append(ratio)
        if is_ours(row["implementation"]):
            worst = max(ratio, worst or 0.0)
        lines.append(
            f"  {row['case']:26}{row['pass']:8}{row['dtype']:9}{row['implementation']:30}"
            f"{_number(median(earlier)):>8} -> {_number(median(row)):>8} ms {ratio:>6.2f}x{after}"
        )
    if not ratios:
        lines.append("  no row in common")
    for name, values in ratios.items():
        lines.append(f"  geometric mean {name:30}{geometric_mean(values):>6.2f}x over {len(values)} rows")
    return lines, worst


# -- Markdown ---------------------------------------------------------------------------------------


def _cell(row: dict | None, best: dict | None) -> str:
    if row is None:
        return ""
    if row["status"] != "ok":
        return row["status"]
    text = f"{_number(median(row))} ms"
    return text if best is None or row is best else f"{text} ({median(row) / median(best):.2f}x)"


def markdown(result: dict) -> str:
    """Tables for README and docs: a row per case, a column per implementation, time and peak memory."""
    blocks: dict[tuple, dict[tuple, list[dict]]] = {}
    for key, group in groups(without_memory(result["rows"])).items():
        blocks.setdefault(key[1:], {})[key] = group
    text = []
    for (pass_name, dtype, layout), members in blocks.items():
        names = list(dict.fromkeys(row["implementation"] for group in members.values() for row in group))
        title = "Training step" if pass_name == "train" else "Forward"
        text.append(f"**{title}, {dtype}, {layout}**: median time (time / ours)\n")
        text.append(f"| layer | | {' | '.join(names)} | peak memory, MiB |")
        text.append("|---|---|" + "--:|" * (len(names) + 1))
        for group in members.values():
            rows, best = {row["implementation"]: row for row in group}, baseline(group)
            cells = " | ".join(_cell(rows.get(name), best) for name in names)
            peaks = " / ".join(_mebibytes(rows[name]) if name in rows else "-" for name in names)
            text.append(f"| {group[0]['case']} | {group[0]['description']} | {cells} | {peaks} |")
        text.append("")
    for title, header, body in mean_tables(result["rows"]):
        text += [f"**{title}**\n", f"| {' | '.join(header)} |", "|---|---|" + "--:|" * (len(header) - 2)]
        text += [f"| {' | '.join(cells)} |" for cells in body]
        text.append("")
    for title, header, body in memory_tables(result["rows"]):
        text += [f"**{title}**\n", f"| {' | '.join(header)} |", "|---|" + "--:|" * (len(header) - 1)]
        text += [f"| {' | '.join(cells)} |" for cells in body]
        text.append("")
    methods = dict.fromkeys(row["memory"]["method"] for row in result["rows"] if row["memory"])
    environment = result["environment"]
    text.append(
        f"{environment['machine']}, {environment['threads']} threads, torch {environment['torch']}, "
        f"cuDNN {environment['cudnn']}, oneDNN {environment['onednn']}, commit "
        f"{(environment['commit'] or 'unknown')[:10]}{' (modified)' if environment['dirty'] else ''}, "
        f"{result['created'][:10]}. `{result['command']}`. Memory: {'; '.join(methods) or 'not measured'}."
    )
    text += [f"\nWarning: {line}" for line in result["warnings"]]
    text += [f"\n{line}" for line in result["notes"]]
    return "\n".join(text) + "\n"


# -- plot -------------------------------------------------------------------------------------------


def plots(result: dict, path: Path) -> list[Path]:
    """Draws what the result has, :func:`plot` and :func:`plot_memory`; the files written.

    The second goes to ``path`` if it is the only one, else beside it, with ``-memory`` in its name.
    """
    written = []
    if without_memory(result["rows"]):
        plot(result, path)
        written.append(path)
    if len(without_memory(result["rows"])) < len(result["rows"]):
        beside = path.with_stem(f"{path.stem}-memory") if written else path
        plot_memory(result, beside)
        written.append(beside)
    return written


def plot_memory(result: dict, path: Path) -> None:
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
    _finish(figure, result, path)


def _finish(figure, result: dict, path: Path) -> None:
    from matplotlib import pyplot

    environment = result["environment"]
    figure.suptitle(
        f"{environment['machine']}, {environment['threads']} threads, torch {environment['torch']}",
        fontsize=9,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def plot(result: dict, path: Path) -> None:
    """PNG: per pass, dtype and layout the time of every implementation over ours, a row per case.

    Needs matplotlib. ValueError: no case has a right result of ours.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    blocks: dict[tuple, list[list[dict]]] = {}
    for key, group in groups(without_memory(result["rows"])).items():
        if baseline(group) is not None:
            blocks.setdefault(key[1:], []).append(group)
    if not blocks:
        raise ValueError("nothing to plot: no case has a right result of ours")
    names = list(dict.fromkeys(row["implementation"] for row in result["rows"]))
    markers = dict(zip(names, "osD^vPX*", strict=False))
    colors = {name: f"C{index}" for index, name in enumerate(names)}
    tallest = max(len(members) for members in blocks.values())
    figure, axes = pyplot.subplots(
        1,
        len(blocks),
        figsize=(2.5 + 5.5 * len(blocks), 1.8 + 0.3 * tallest),
        squeeze=False,
        layout="constrained",
    )
    for axis, ((pass_name, dtype, layout), members) in zip(axes[0], blocks.items(), strict=True):
        labels = []
        for height, group in enumerate(members):
            best = baseline(group)
            labels.append(f"{group[0]['case']}\n{group[0]['description']}: {_number(median(best))} ms")
            for row in group:
                if row["status"] == "ok":
                    name = row["implementation"]
                    axis.plot(median(row) / median(best), height, marker=markers[name], color=colors[name])
        axis.axvline(1, color="gray", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_yticks(range(len(labels)), labels, fontsize=6)
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.3)
        title = "training step" if pass_name == "train" else "forward"
        axis.set_title(f"{title}, {dtype}, {layout}", fontsize=9)
        axis.set_xlabel("time / ours (right of 1: ours is faster)", fontsize=8)
    handles = [
        pyplot.Line2D([], [], marker=markers[name], color=colors[name], linestyle="", label=name)
        for name in names
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names), fontsize=8)
    _finish(figure, result, path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Show a result file of benchmarks/bench.py.")
    parser.add_argument("result", type=Path)
    parser.add_argument("--markdown", action="store_true", help="print tables for README and docs")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="set beside an older result")
    options = parser.parse_args(arguments)
    try:
        result = load(options.result)
        if options.markdown:
            print(markdown(result), end="")
        elif options.compare is None:
            rows = without_memory(result["rows"])
            print(
                "\n".join([HEADER, *table_lines(rows), "", *mean_lines(rows), *memory_lines(result["rows"])])
            )
        if options.compare is not None:
            print("\n".join(compare(result, load(options.compare))[0]))
        if options.plot is not None:
            plots(result, options.plot)
    except (OSError, ValueError, ImportError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
