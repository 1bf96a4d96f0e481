"""Figures of volumes with their labels, and of trainings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .saving import whole

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


def draw_curves(
    path: str | os.PathLike, panels: Mapping[str, Mapping[str, Sequence[Mapping[int, float]]]], metric: str
) -> None:
    """Draws values over the epochs: title of a panel -> name -> a mapping from epoch to value for each seed.

    Several seeds are a line at their mean over the epochs that all have, and a band from the least to the most.
    """
    figure = Figure(figsize=(6.4 if len(panels) == 1 else 3 * len(panels), 4), layout="constrained")
    for axes, (title, curves) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items()
    ):
        for name, seeds in curves.items():
            epochs = sorted(set.intersection(*map(set, seeds)))
            values = np.array([[seed[epoch] for epoch in epochs] for seed in seeds])
            (line,) = axes.plot(epochs, values.mean(0), label=name)
            if len(seeds) > 1:
                band = {"color": line.get_color(), "alpha": 0.15, "linewidth": 0}
                axes.fill_between(epochs, values.min(0), values.max(0), **band)
        axes.set(title=title, xlabel="epoch")
        axes.legend(fontsize="small", frameon=False)
    figure.axes[0].set_ylabel(metric)
    _save(figure, path)


def _save(figure: Figure, path: str | os.PathLike) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    with whole(path) as file:
        figure.savefig(file, format=path.suffix[1:] or "png", dpi=110)
