"""The three tasks: what is trained on, what is tested on, turn by turn. Called by run.py and predict.py.

Volumes are on one grid of cubic voxels, [D, H, W] from inferior, posterior and left (see volumes.py), and a dataset's
items are (image float32 [1, *size], target). The 2D pretraining takes the same datasets with ``planes=True``: slices
[1, edge, edge] of the training volumes, across all three axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.data import Dataset

from . import volumes
from .sampling import Jitter, Patches, Regions, Whole
from .sources import DONORS, SOURCES


@dataclass(frozen=True)
class Split:
    """One turn: ``training(length, planes)`` makes a dataset of so many random items; two that are not random."""

    training: Callable[[int, bool], Dataset]
    validation: Dataset
    test: Dataset


@dataclass(frozen=True)
class Task:
    """``split(turn, edge, spacing)``: edge of patches in voxels, spacing in millimetres."""

    title: str
    class_names: tuple[str, ...]
    turns: tuple[str, ...]
    split: Callable[[str, int, float], Split]
    metrics: tuple[str, ...]

    @property
    def is_segmentation(self) -> bool:
        return self.metrics[0] == "test_dice"


# --- (a) tissues of the MNI152 volume ---------------------------------------------------------------------

TISSUES = ("background", "CSF", "grey matter", "white matter")
GAP = 4.0  # millimetres between the parts


@cache
def _tissues(spacing: float) -> tuple[Tensor, Tensor]:
    """Image and labels [D, H, W]; where the brain is, the label is the most probable tissue, and CSF what is left."""
    source = SOURCES["icbm152"]
    t1, grey, white = (
        volumes.read(source.path(role)).at(spacing).clamp_min(0) for role in ("t1", "grey", "white")
    )
    brain = t1 > t1.max() / 20
    grey, white = grey / 255, white / 255
    labels = torch.stack([1 - grey - white, grey, white]).argmax(0) + 1
    return volumes.normalise(t1), labels * brain


def _split_tissues(turn: str, edge: int, spacing: float) -> Split:
    """Along the axis posterior-anterior: the volume is its own mirror image from left to right.

    The half that ``turn`` does not name trains, the first third of the other validates, what is left tests.
    """
    image, labels = _tissues(spacing)
    if turn == "posterior":
        image, labels = image.flip(1), labels.flip(1)
    rows = labels.amax((0, 2)).nonzero()
    first, last = int(rows.min()), int(rows.max()) + 1
    gap = max(round(GAP / spacing), 1)
    middle, third = first + (last - first) // 2, first + (last - first) * 2 // 3

    def part(start: int, stop: int | None) -> list[tuple[Tensor, Tensor]]:
        cut = [image[:, start:stop], labels[:, start:stop]]
        if turn == "posterior":
            cut = [value.flip(1) for value in cut]
        return [(cut[0], cut[1])]

    training = part(0, middle)
    return Split(
        lambda length, planes: Patches(training, edge, length, planes, Jitter(mirrored=True)),
        Whole(part(middle + gap, third)),
        Whole(part(third + gap, None)),
    )


# --- (b) brains of three heads ----------------------------------------------------------------------------

HEADS = ("colin27", "mni152", "robex")
CLOSING = 4.0  # millimetres, along the axes: gaps of up to twice that are closed


def head(name: str) -> tuple[volumes.Volume, Tensor]:
    """A head and its mask, uint8 on the grid of its values.

    BET's mask of Colin27 leaves out what is dark between the gyri, unlike the two others: it is closed, by ``CLOSING``.

    Raises:
        VolumeMissing: it is not installed.
    """
    source = SOURCES[name]
    mask = volumes.read(source.path("mask"))
    inside = (mask.values > 0).numpy()
    if name == "colin27":
        steps = max(round(CLOSING / mask.spacing[0]), 1)  # its voxels are cubes
        closed = ndimage.binary_closing(numpy.pad(inside, steps), iterations=steps)
        inside = ndimage.binary_fill_holes(closed)[(slice(steps, -steps),) * 3]
    return volumes.read(source.path("t1")), torch.from_numpy(inside.astype(numpy.uint8))


@cache
def _head(name: str, spacing: float) -> tuple[Tensor, Tensor]:
    """Image and mask [D, H, W], for training."""
    volume, mask = head(name)
    values = volume.at(spacing)
    return volumes.normalise(values), (volumes.resample(mask.float(), values.shape) > 0.5).long()


def _split_heads(turn: str, edge: int, spacing: float) -> Split:
    """``turn`` is the head that tests. No third one is left to validate: the two that train do, unchanged."""
    heads = [_head(name, spacing) for name in HEADS if name != turn]
    jitter = Jitter(mirrored=True, rotation=15, scale=0.15, contrast=0.3)
    return Split(
        lambda length, planes: Patches(heads, edge, length, planes, jitter),
        Whole(heads),
        Whole([_head(turn, spacing)]),
    )


# --- (c) regions by their shape ---------------------------------------------------------------------------

REGIONS = 82


@cache
def _regions(donor: str, edge: int, spacing: float) -> Tensor:
    """[82, edge, edge, edge] in [0, 1]: how much of every voxel is in the region, around the centre of its box."""
    labels = volumes.read(SOURCES["donors"].path(donor))
    crops = []
    for region in range(1, REGIONS + 1):
        voxels = (labels.values == region).nonzero()
        centre = (voxels.amin(0) + voxels.amax(0)) / 2
        half = edge * spacing / 2 / torch.tensor(labels.spacing)
        size = (2 * half).round().long().tolist()
        start = (centre - half + 0.5).round().long()
        box = torch.zeros(size)
        inside = voxels - start
        inside = inside[((inside >= 0) & (inside < torch.tensor(size))).all(1)]
        box[inside.unbind(1)] = 1
        crops.append(volumes.resample(box, (edge, edge, edge)))
    return torch.stack(crops)


@cache
def donor_shapes(donors: tuple[str, ...], edge: int, spacing: float) -> tuple[Tensor, Tensor]:
    """Shapes [82 * donors, edge, edge, edge] and their classes, donor after donor."""
    shapes = torch.cat([_regions(donor, edge, spacing) for donor in donors])
    return shapes, torch.arange(REGIONS).repeat(len(donors))


def _split_donors(turn: str, edge: int, spacing: float) -> Split:
    """``turn`` is the donor that tests; of the others' shapes every tenth validates."""
    shapes, classes = donor_shapes(tuple(donor for donor in DONORS if donor != turn), edge, spacing)
    tenth = torch.arange(len(shapes)) % 10 == 5
    # Left and right are classes of their own: shapes are not mirrored.
    jitter = Jitter(rotation=10, scale=0.1, shift=1.5)
    return Split(
        lambda length, planes: Regions(shapes[~tenth], classes[~tenth], length, planes, jitter),
        Regions(shapes[tenth], classes[tenth]),
        Regions(*donor_shapes((turn,), edge, spacing)),
    )


def nearest_neighbour(turn: str, edge: int, spacing: float) -> float:
    """Share of the donor's shapes whose nearest neighbour among all other donors' shapes is of the same region."""
    shapes, classes = donor_shapes(tuple(donor for donor in DONORS if donor != turn), edge, spacing)
    tested, truth = donor_shapes((turn,), edge, spacing)
    nearest = torch.cdist(tested.flatten(1), shapes.flatten(1)).argmin(1)
    return float((classes[nearest] == truth).float().mean())


TASKS = {
    "tissue": Task(
        "tissues of the MNI152 volume",
        TISSUES,
        ("anterior", "posterior"),
        _split_tissues,
        ("test_dice", *(f"test_dice_{name}" for name in TISSUES[1:])),
    ),
    "extraction": Task(
        "brain extraction, three heads in turns",
        ("background", "brain"),
        HEADS,
        _split_heads,
        ("test_dice",),
    ),
    "regions": Task(
        "82 regions by their shape, six donors in turns",
        tuple(f"region {number}" for number in range(1, REGIONS + 1)),
        DONORS,
        _split_donors,
        ("test_accuracy",),
    ),
}
