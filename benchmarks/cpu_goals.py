"""The goals of the fused CPU kernels, by class of layer, and what a result of the suite ``layers`` says to them.

A peer counts at its better layout, our layouts count each for themselves. Ratios are geometric means over the layers
of a class; the share of the matrix product is the mean, beside that of the lowest layer. The tables are part of
``report.py --markdown`` where a result has layers that were measured in both layouts on a CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from harness import geometric_mean
from implementations import ACSCONV, CONV3D, LAYOUTS, ours
from result_file import median

sys.path[:0] = [
    str(Path(__file__).resolve().parent.parent / "tests")
]  # the table of cases is shared with the tests

from cases import WIDE_CHANNELS, Case, select  # noqa: E402

OURS = ours("cpu")
CASES = {case.name: case for case in select()}
LAYOUTS_APART = 1.1  # our slower layout over the other, at most

Table = tuple[str, list[str], list[list[str]]]


def _plain(case: Case) -> bool:
    """Stride 1, no groups, 32 input channels or more."""
    plain = case.kind == "acs" and case.groups == 1 and case.kernel_size > 1
    return plain and case.in_channels >= 32 and max(case.stride) == 1


@dataclass(frozen=True)
class Goal:
    """What the layers of a class are to reach; 0 is no goal."""

    title: str
    belongs: Callable[[Case], bool]
    conv3d: float = 0.0  # nn.Conv3d's time over ours
    acsconv: float = 0.0  # acsconv 0.1.1's time over ours
    mean_share: float = 0.0  # of the matrix product
    least_share: float = 0.0  # of the matrix product, every layer
    pass_name: str = "forward"
    dtype: str = "float32"


GOALS = (
    Goal("stride 1, 32 input channels or more", _plain, conv3d=2.1, mean_share=0.80, least_share=0.72),
    Goal("... fewer than 128 output channels", lambda c: _plain(c) and c.out_channels < WIDE_CHANNELS, acsconv=1.4),
    Goal("... 128 output channels or more", lambda c: _plain(c) and c.out_channels >= WIDE_CHANNELS, acsconv=1.1),
    Goal("the same layers", _plain, conv3d=2.3, acsconv=1.2, mean_share=0.70, pass_name="train"),
    Goal("first layers", lambda c: c.family == "first layer", conv3d=2, acsconv=2.5),
    Goal("strided", lambda c: c.family == "strided", conv3d=1.2, acsconv=1.0),
    Goal("depthwise", lambda c: c.family == "depthwise", conv3d=3, acsconv=3),
    Goal("depthwise", lambda c: c.family == "depthwise", conv3d=3, acsconv=3, pass_name="train"),
    Goal("Soft ACS", lambda c: c.family == "soft", conv3d=1, acsconv=2.5),
    Goal("stride 1, 32 input channels or more", _plain, conv3d=1.7, acsconv=1.3, dtype="bfloat16"),
)  # fmt: skip

Key = tuple[str, str, str]  # case, pass, dtype


@dataclass(frozen=True)
class Layer:
    """One case in one pass and dtype: our milliseconds by layout, and those of each peer at its better layout."""

    case: Case
    time: dict[str, float]
    share: dict[str, float]  # of the matrix product, by layout
    peers: dict[str, float]

    def ratio(self, peer: str, layout: str) -> float | None:
        """The peer's time over ours; None if it has no right result."""
        return self.peers[peer] / self.time[layout] if peer in self.peers else None


def layers(rows: Iterable[dict]) -> dict[Key, Layer]:
    """The layers that have a right result of ours in both layouts."""
    times: dict[Key, dict[str, dict[str, dict]]] = {}
    for row in rows:
        case = CASES.get(row["case"])
        # A layer of another --batch or --scale has the name, but not the goals.
        if case is not None and row["description"] == case.describe() and row["status"] == "ok":
            key = (row["case"], row["pass"], row["dtype"])
            times.setdefault(key, {}).setdefault(row["implementation"], {})[row["layout"]] = row
    found = {}
    for key, by_name in times.items():
        mine = by_name.get(OURS, {})
        if set(mine) == set(LAYOUTS):
            found[key] = Layer(
                CASES[key[0]],
                {layout: median(row) for layout, row in mine.items()},
                {
                    layout: row["flops"] / (median(row) / 1e3) / row["ceilings"]["matrix product"]
                    for layout, row in mine.items()
                },
                {
                    peer: min(map(median, by_name[peer].values()))
                    for peer in (CONV3D, ACSCONV)
                    if peer in by_name
                },
            )
    return found


def tables(rows: Iterable[dict]) -> list[Table]:
    """Tables (title, header, rows of cells): the classes, and every layer that misses something; none without layers
    in both layouts.
    """
    found = layers(rows)
    if not found:
        return []
    header = [
        "class",
        "layout",
        "share of the matrix product: mean, lowest",
        "nn.Conv3d / ours",
        "acsconv 0.1.1 / ours",
    ]
    body = []
    for goal in GOALS:
        members = [
            layer
            for (_, pass_name, dtype), layer in found.items()
            if (pass_name, dtype) == (goal.pass_name, goal.dtype) and goal.belongs(layer.case)
        ]
        for layout in LAYOUTS if members else ():
            body.append([f"{goal.dtype} {goal.pass_name}, {goal.title} ({len(members)})", layout])
            shares = [layer.share[layout] for layer in members]
            mean, least = sum(shares) / len(shares), min(shares)
            body[-1].append(
                f"{_against(mean, goal.mean_share, '.0%')}, {_against(least, goal.least_share, '.0%')}"
            )
            for peer, wanted in ((CONV3D, goal.conv3d), (ACSCONV, goal.acsconv)):
                ratios = [ratio for layer in members if (ratio := layer.ratio(peer, layout)) is not None]
                body[-1].append(_against(geometric_mean(ratios), wanted, ".2f") if ratios else "-")
    title = "Goals, reached and (goal): geometric means, each peer at its better layout (number of layers)"
    return [(title, header, body), _misses(found)]


def _against(value: float, goal: float, form: str) -> str:
    """A number, with its goal in parentheses if it has one, bold where it is missed."""
    text = format(value, form)
    if not goal:
        return text
    return f"{text} ({format(goal, form)})" if value >= goal else f"**{text}** ({format(goal, form)})"


def _misses(found: dict[Key, Layer]) -> Table:
    """Every layer that is slower than a peer, below its share, or slower in one layout than in the other."""
    body = []
    for (name, pass_name, dtype), layer in found.items():
        texts = []
        for layout in LAYOUTS:
            for peer in (CONV3D, ACSCONV):
                ratio = layer.ratio(peer, layout)
                if ratio is not None and ratio < 1:
                    texts.append(f"{layout}: {ratio:.2f} of {peer}'s speed")
            least = [
                goal.least_share
                for goal in GOALS
                if (goal.pass_name, goal.dtype) == (pass_name, dtype) and goal.belongs(layer.case)
            ]
            if layer.share[layout] < max(least, default=0):
                texts.append(
                    f"{layout}: {layer.share[layout]:.0%} of the matrix product, goal {max(least):.0%}"
                )
        apart = max(layer.time.values()) / min(layer.time.values())
        if apart > LAYOUTS_APART:
            slower = max(layer.time, key=layer.time.__getitem__)
            texts.append(f"{slower}: {apart:.2f} times the other layout's time")
        if texts:
            body.append([f"{name}, {layer.case.describe()}", f"{dtype} {pass_name}", "; ".join(texts)])
    title = "Layers below a goal: slower than a peer, below their share, or layouts more than 10 % apart"
    return (title, ["layer", "pass", "what"], body or [["none", "", ""]])
