"""Datasets of items cut from volumes: at random with a random affine map, or whole. Called by tasks.py.

Random numbers are torch's global ones, which the training seeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

# Slices across D, H and W: the planes of ACS convolution, in its order.
AXES = ((0, 1, 2), (1, 0, 2), (2, 0, 1))


@dataclass(frozen=True)
class Jitter:
    """How items differ from what they are cut from: each number is the largest change, in both directions.

    ``rotation`` in degrees about a random axis; ``scale`` of each axis by 1 + it; ``shift`` in voxels; ``contrast``:
    factor of the values by 1 + it, and a constant added; ``mirrored``: half of the items, from left to right.
    """

    rotation: float = 10.0
    scale: float = 0.1
    shift: float = 0.0
    contrast: float = 0.1
    mirrored: bool = False

    def matrix(self) -> Tensor:
        """[3, 3] on offsets (d, h, w)."""
        axis, angle = F.normalize(torch.randn(3), dim=0), math.radians(self.rotation) * _uniform()
        x, y, z = axis.tolist()
        cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        turn = torch.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
        scale = 1 + self.scale * (2 * torch.rand(3) - 1)
        if self.mirrored and torch.rand(()) < 0.5:
            scale[2] = -scale[2]
        return turn * scale

    def values(self, values: Tensor) -> Tensor:
        return values * (1 + self.contrast * _uniform()) + self.contrast * _uniform()


class Patches(Dataset):
    """Random patches of images [D, H, W] and labels [D, H, W], image after image.

    Items are (float32 [1, *size], int64 [*size]); ``size`` is (edge, edge, edge), or, with ``planes``, (edge, edge),
    across the axes of the volume in turn. Outside of an image the border goes on.
    """

    def __init__(
        self, parts: list[tuple[Tensor, Tensor]], edge: int, length: int, planes: bool, jitter: Jitter
    ) -> None:
        self.parts, self.edge, self.length, self.planes, self.jitter = parts, edge, length, planes, jitter

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, labels = self.parts[index % len(self.parts)]
        room = torch.tensor([max(size - self.edge, 0) for size in image.shape])
        centre = (torch.tensor(image.shape) - 1) / 2 + room * (torch.rand(3) - 0.5)
        axis = index // len(self.parts) % 3 if self.planes else None
        points = _points(centre, self.jitter.matrix(), self.edge, axis)
        values = _look_up(image, points, "bilinear")
        return self.jitter.values(values).unsqueeze(0), _look_up(labels.float(), points, "nearest").long()


class Regions(Dataset):
    """Shapes [N, edge, edge, edge] in [0, 1] and their classes; items are (float32 [1, *size], class).

    With ``length``, so many, moved by ``jitter``; with ``planes``, slices that meet the shape, across an axis drawn at
    random. Without, all of them as they are.
    """

    def __init__(
        self,
        shapes: Tensor,
        classes: Tensor,
        length: int | None = None,
        planes: bool = False,
        jitter: Jitter | None = None,
    ) -> None:
        self.shapes, self.classes, self.length = shapes, classes, length
        self.planes, self.jitter = planes, jitter

    def __len__(self) -> int:
        return len(self.shapes) if self.length is None else self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        number = index % len(self.shapes)
        shape, edge = self.shapes[number], self.shapes.shape[-1]
        if self.jitter is None:
            return shape.unsqueeze(0), self.classes[number]
        centre = torch.full((3,), (edge - 1) / 2) + self.jitter.shift * (2 * torch.rand(3) - 1)
        axis = None
        if self.planes:
            axis = int(torch.randint(3, ()))
            filled = (shape.amax(AXES[axis][1:]) > 0.5).nonzero().flatten()
            centre[axis] = filled[int(torch.randint(len(filled), ()))] if len(filled) else (edge - 1) / 2
        points = _points(centre, self.jitter.matrix(), edge, axis)
        return _look_up(shape, points, "bilinear").unsqueeze(0), self.classes[number]


class Whole(Dataset):
    """Images and labels as they are: (float32 [1, D, H, W], int64 [D, H, W])."""

    def __init__(self, parts: list[tuple[Tensor, Tensor]]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, labels = self.parts[index]
        return image.unsqueeze(0), labels


def _uniform() -> float:
    return 2 * float(torch.rand(())) - 1


def _points(centre: Tensor, matrix: Tensor, edge: int, axis: int | None) -> Tensor:
    """Voxel coordinates (d, h, w) of a patch: [edge, edge, edge, 3], or, across ``axis``, [edge, edge, 3]."""
    offsets = torch.arange(edge) - (edge - 1) / 2
    ranges = [offsets] * 3
    if axis is not None:
        ranges[axis] = torch.zeros(1)
    grid = torch.stack(torch.meshgrid(*ranges, indexing="ij"), -1)
    points = grid @ matrix.T + centre
    return points if axis is None else points.squeeze(axis)


def _look_up(volume: Tensor, points: Tensor, mode: str) -> Tensor:
    """Values of a volume [D, H, W] at voxel coordinates [..., 3]: [...]. Outside, those of the border."""
    sizes = torch.tensor(volume.shape)
    grid = (2 * points / (sizes - 1).clamp_min(1) - 1).flip(-1).reshape(1, 1, 1, -1, 3)
    found = F.grid_sample(volume[None, None], grid, mode=mode, padding_mode="border", align_corners=True)
    return found.reshape(points.shape[:-1])
