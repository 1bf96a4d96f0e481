"""Draws acs_convolution.png: what an ACS convolution is, in one picture.

python docs/figures/acs_convolution.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

from acsconv_cuda.geometry import AXES, VIEWS, default_split

COLOURS = ("#c0504d", "#4f81bd", "#9bbb59")  # axial, coronal, sagittal
OUT_CHANNELS = 8
SIZE = 5  # voxels of the drawn volume along each axis


def draw_kernels(axes: Axes) -> None:
    """The bank of 2D kernels [C_out, C_in, K, K], one little 3x3 grid for each output channel."""
    split = default_split(OUT_CHANNELS)
    views = np.repeat(range(3), split)
    for channel, view in enumerate(views):
        y = OUT_CHANNELS - channel + 0.25 * (2 - view)
        for row in range(3):
            for column in range(3):
                cell = Rectangle(
                    (column * 0.27, y + row * 0.27), 0.27, 0.27, fc=COLOURS[view], ec="white", lw=1
                )
                axes.add_patch(cell)
    for view, (begin, count) in enumerate(zip(np.cumsum((0, *split[:-1])), split, strict=True)):
        middle = OUT_CHANNELS - begin - (count - 1) / 2 + 0.25 * (2 - view) + 0.4
        axes.text(1.1, middle, f"{count} {VIEWS[view].name}", color=COLOURS[view], va="center", fontsize=12)
    axes.set(xlim=(-0.3, 4), ylim=(0.5, OUT_CHANNELS + 2), aspect="equal")
    axes.axis("off")
    axes.set_title(f"weights of a 2D layer\n[{OUT_CHANNELS}, C_in, 3, 3]", fontsize=12)


def draw_view(axes, view: int) -> None:
    """The volume with the 3x3 kernel of one view in its plane."""
    kernel = VIEWS[view].kernel3d((3, 3))
    centre = SIZE // 2
    filled = np.zeros((SIZE,) * 3, dtype=bool)
    filled[tuple(slice(centre - k // 2, centre + k // 2 + 1) for k in kernel)] = True
    # Matplotlib's z axis points up: D is drawn along it, W along x, H along y.
    axes.voxels(filled.transpose(2, 1, 0), facecolors=COLOURS[view], edgecolor="white", alpha=0.95)
    corners = np.array([[0, SIZE]] * 3)
    for start in np.ndindex(2, 2, 2):
        for axis in range(3):
            if start[axis] == 0:
                end = list(start)
                end[axis] = 1
                line = [[corners[a][start[a]], corners[a][end[a]]] for a in range(3)]
                axes.plot(*line, color="#888888", lw=0.8)
    axes.set(xlim=(0, SIZE), ylim=(0, SIZE), zlim=(0, SIZE), xticks=[], yticks=[], zticks=[])
    axes.set_xlabel("W", labelpad=-12)
    axes.set_ylabel("H", labelpad=-12)
    axes.set_zlabel("D", labelpad=-12)
    axes.view_init(elev=22, azim=-58)
    plane = f"{AXES[VIEWS[view].row]}, {AXES[VIEWS[view].column]}"
    axes.set_title(
        f"{VIEWS[view].name}: plane ({plane})\nkernel {'x'.join(map(str, kernel))}",
        color=COLOURS[view],
        fontsize=12,
    )


def draw_output(axes: Axes) -> None:
    """The output's channels, side by side."""
    views = np.repeat(range(3), default_split(OUT_CHANNELS))
    for channel, view in enumerate(views):
        offset = channel * 0.32
        axes.add_patch(
            Rectangle((offset, offset), 2.2, 2.2, fc=COLOURS[view], ec="white", lw=1.2, zorder=-channel)
        )
    axes.set(xlim=(-1.3, 5), ylim=(-0.6, 5.2), aspect="equal")
    axes.axis("off")
    axes.set_title(f"output\n[N, {OUT_CHANNELS}, D', H', W']", fontsize=12)


def main() -> None:
    figure = plt.figure(figsize=(14, 3.9))
    grid = figure.add_gridspec(1, 5, width_ratios=(1.1, 1, 1, 1, 1), wspace=0.08)
    draw_kernels(figure.add_subplot(grid[0]))
    for view in range(3):
        draw_view(figure.add_subplot(grid[1 + view], projection="3d"), view)
    draw_output(figure.add_subplot(grid[4]))
    for x in (0.265, 0.755):
        figure.add_artist(
            FancyArrowPatch(
                (x, 0.45), (x + 0.025, 0.45), transform=figure.transFigure, mutation_scale=22, color="#666666"
            )
        )
    path = Path(__file__).with_suffix(".png")
    figure.savefig(path, dpi=110, bbox_inches="tight", facecolor="white")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
