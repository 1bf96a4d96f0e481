"""What is made of the result files that result_file.py defines: table, comparison, Markdown, plot.

    python benchmarks/report.py RESULT.json [--markdown] [--plot FILE.png] [--compare OLD.json]

The rows of the memory suite have tables and a plot of their own, in memory_report.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import cpu_goals
import memory_report
from harness import geometric_mean
from result_file import (
    GROUP_KEYS,
    NETWORK,
    baseline,
    groups,
    is_ours,
    load,
    mebibytes,
    median,
    number,
    save_figure,
    without_memory,
)

MEAN_KEYS = ("pass", "dtype", "layout", "implementation", "family")


# -- means ------------------------------------------------------------------------------------------


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


# -- text -------------------------------------------------------------------------------------------

HEADER = (
    f"  {'pass':8}{'implementation':30}{'median ms':>10}  {'IQR':19}{'/ ours':>7}{'GFLOP/s':>9}{'ceiling':>8}"
    f"{'peak MiB':>10}{'error':>9}  match"
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
            quartiles = f"[{number(time['q1'])}, {number(time['q3'])}]"
            ratio = f"{median(row) / median(best):.2f}x" if best else "-"
            rate = f"{row['flops'] / median(row) / 1e6:.0f}" if row["flops"] else "-"
            share = f"{row['ceiling_share']:.0%}" if row["ceiling_share"] else "-"
            lines.append(
                f"{start}{number(time['median']):>10}  {quartiles:19}{ratio:>7}{rate:>9}{share:>8}"
                f"{mebibytes(row):>10}{max(row['error'].values()):>9.1e}  ok"
            )
            if "device" in row["time"]:
                lines.append(
                    f"  {'':8}{'  with launches and Python':30}{number(row['time']['wall']['median']):>10}"
                )
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
            f"{number(median(earlier)):>8} -> {number(median(row)):>8} ms {ratio:>6.2f}x{after}"
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
    text = f"{number(median(row))} ms"
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
            peaks = " / ".join(mebibytes(rows[name]) if name in rows else "-" for name in names)
            text.append(f"| {group[0]['case']} | {group[0]['description']} | {cells} | {peaks} |")
        text.append("")
    tables = mean_tables(result["rows"])
    if result["environment"]["device"] == "cpu":
        tables += cpu_goals.tables(result["rows"])
    for title, header, body in tables:
        text += [f"**{title}**\n", f"| {' | '.join(header)} |", "|---|---|" + "--:|" * (len(header) - 2)]
        text += [f"| {' | '.join(cells)} |" for cells in body]
        text.append("")
    for title, header, body in memory_report.tables(result["rows"]):
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
        + (" Freed memory is kept for the next call." if environment.get("freed_memory_kept") else "")
    )
    text += [f"\nWarning: {line}" for line in result["warnings"]]
    text += [f"\n{line}" for line in result["notes"]]
    return "\n".join(text) + "\n"


# -- plot -------------------------------------------------------------------------------------------


def plots(result: dict, path: Path) -> list[Path]:
    """Draws what the result has, :func:`plot` and :func:`memory_report.plot`; the files written.

    The second goes to ``path`` if it is the only one, else beside it, with ``-memory`` in its name.
    """
    written = []
    if without_memory(result["rows"]):
        plot(result, path)
        written.append(path)
    if len(without_memory(result["rows"])) < len(result["rows"]):
        beside = path.with_stem(f"{path.stem}-memory") if written else path
        memory_report.plot(result, beside)
        written.append(beside)
    return written


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
            labels.append(f"{group[0]['case']}\n{group[0]['description']}: {number(median(best))} ms")
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
    save_figure(figure, result, path)


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
                "\n".join(
                    [HEADER, *table_lines(rows), "", *mean_lines(rows), *memory_report.lines(result["rows"])]
                )
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
