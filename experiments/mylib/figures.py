"""Figures of volumes with their labels, and of trainings."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

PLANES = ("axial", "coronal", "sagittal")
#: Of labels 1, 2, ...: Okabe and Ito's, which colour-blind people can tell apart.
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")

Volume = np.ndarray | torch.Tensor


def three_planes(
    path: str | os.PathLike,
    volume: Volume,
    overlays: Mapping[str, Volume],
    class_names: Sequence[str],
    centre: Sequence[int] | None = None,
) -> None:
    """Draws the three planes through a voxel, one below the other: the volume alone, then with each overlay.

    Args:
        path: of the PNG file; its folder is made.
        volume: [D, H, W].
        overlays: title -> labels, integers [D, H, W]; label 0 is transparent.
        class_names: of the labels, background first.
        centre: the voxel; by default the middle one.

    Raises:
        ValueError: an overlay of another shape than the volume, or more classes than there are colours.
    """
    volume = np.asarray(volume)
    if volume.ndim != 3:
        raise ValueError(f"volume: expected [D, H, W], got {list(volume.shape)}")
    if len(class_names) > len(COLOURS) + 1:
        raise ValueError(f"class_names: expected at most {len(COLOURS) + 1}, got {len(class_names)}")
    centre = [size // 2 for size in volume.shape] if centre is None else centre
    colours = ListedColormap(COLOURS[: max(1, len(class_names) - 1)])
    figure = Figure(figsize=(2.4 * (len(overlays) + 1), 7.6), layout="constrained")
    axes = figure.subplots(3, len(overlays) + 1, squeeze=False)
    low, high = np.percentile(volume, (1, 99))
    for column, (title, labels) in enumerate({"input": None, **overlays}.items()):
        axes[0, column].set_title(title)
        if labels is not None:
            labels = np.asarray(labels)
            if labels.shape != volume.shape:
                raise ValueError(f"{title}: expected {list(volume.shape)}, got {list(labels.shape)}")
        for axis, (plane, index) in enumerate(zip(PLANES, centre)):
            panel = axes[axis, column]
            panel.set(xticks=[], yticks=[])
            panel.imshow(volume.take(index, axis), cmap="gray", vmin=low, vmax=high, origin="lower")
            if labels is not None:
                shown = labels.take(index, axis)
                panel.imshow(
                    np.ma.masked_equal(shown, 0),
                    cmap=colours,
                    vmin=1,
                    vmax=max(2, len(class_names) - 1),
                    alpha=0.6,
                    origin="lower",
                    interpolation="nearest",
                )
            if column == 0:
                panel.set_ylabel(plane)
    handles = [Patch(color=colour, label=name) for colour, name in zip(COLOURS, class_names[1:])]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)), frameon=False)
    _save(figure, path)


def learning_curves(
    path: str | os.PathLike,
    logs: Mapping[str, str | os.PathLike | Sequence[str | os.PathLike]],
    metric: str,
) -> None:
    """Draws a logged value over the epochs.

    Args:
        path: of the PNG file; its folder is made.
        logs: name -> the ``metrics.csv`` of a training, or of several seeds: their mean, and a band from least to most.
        metric: a column of the logs.

    Raises:
        ValueError: a log without that column; the message names those it has.
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for name, files in logs.items():
        files = [files] if isinstance(files, (str, os.PathLike)) else files
        curves = [_column(Path(file), metric) for file in files]
        epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
        values = np.array([[curve[epoch] for epoch in epochs] for curve in curves])
        (line,) = axes.plot(epochs, values.mean(0), label=name)
        if len(curves) > 1:
            axes.fill_between(
                epochs, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, linewidth=0
            )
    axes.set(xlabel="epoch", ylabel=metric)
    axes.legend(fontsize="small", frameon=False)
    _save(figure, path)


def _column(path: Path, metric: str) -> dict[int, float]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or metric not in rows[0]:
        has = ", ".join(rows[0]) if rows else "nothing"
        raise ValueError(f"{path} has no column {metric!r}; it has {has}")
    return {int(row["epoch"]): float(row[metric]) for row in rows if row[metric]}


def _save(figure: Figure, path: str | os.PathLike) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)
