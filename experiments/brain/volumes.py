"""Volumes as the experiments need them: NIfTI files read and checked, on one grid and scale, and labels written back.

Tensors are [D, H, W] = [inferior to superior, posterior to anterior, left to right] (RAS+ read backwards), whatever the
order of the file's axes, so that the axial view of an ACS convolution is the axial plane of anatomy. Called by tasks.py
and predict.py.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from torch import Tensor
from torch.nn import functional as F

SUFFIXES = (".nii", ".nii.gz")
SMALLEST = 8  # voxels along an axis: less holds no anatomy, and no level of the networks
EXTENT = (20, 2000)  # millimetres along an axis: beyond, the affine's units are not millimetres


class VolumeError(ValueError):
    """A file that cannot be used; the message names it, what it has, and what is needed."""


@dataclass(frozen=True)
class Volume:
    """``values`` float32 [D, H, W]; ``spacing`` in millimetres along these axes; ``image``: the file's grid."""

    values: Tensor
    spacing: tuple[float, float, float]
    image: nibabel.Nifti1Image

    def at(self, spacing: float) -> Tensor:
        """float32 [D', H', W']: the same field of view in voxels of about ``spacing`` millimetres."""
        sizes = [max(round(n * old / spacing), 1) for n, old in zip(self.values.shape, self.spacing)]
        return resample(self.values, sizes)


def read(path: str | os.PathLike) -> Volume:
    """One volume from a NIfTI file.

    Raises:
        FileNotFoundError: there is no such file.
        VolumeError: it is not NIfTI, is truncated or damaged, is not one volume of finite numbers, is constant, or its
            affine says nothing about where the voxels are, or places them nowhere near a head's size.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Image):  # Nifti2 is derived from it
            raise VolumeError(f"{path}: expected NIfTI, got {type(image).__name__}")
        if image.get_data_dtype().fields is not None or image.get_data_dtype().kind == "c":
            raise VolumeError(f"{path}: expected one real number a voxel, got {image.get_data_dtype()}")
        values = numpy.asarray(image.dataobj, dtype=numpy.float32)
        if path.suffix == ".gz":
            _check_sum(path)
    except VolumeError:
        raise
    except Exception as error:  # nibabel, gzip and zlib have a dozen types for a damaged file
        raise VolumeError(f"{path}: not a readable NIfTI file, damaged or truncated: {error}") from error
    shape = values.shape
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise VolumeError(f"{path}: expected one 3D volume, got {len(shape)} axes: {list(shape)}")
    if min(values.shape) < SMALLEST:
        raise VolumeError(f"{path}: expected at least {SMALLEST} voxels along every axis, got {list(shape)}")
    bad = values.size - int(numpy.isfinite(values).sum())
    if bad:
        raise VolumeError(
            f"{path}: expected finite numbers, got {bad} of {values.size} voxels NaN or infinite"
        )
    if values.min() == values.max():
        raise VolumeError(f"{path}: expected an image, got {values.min():g} in every voxel")
    affine, orientation = image.affine, _orientation(image.affine)
    if orientation is None:
        raise VolumeError(f"{path}: expected an affine that places the voxels in space, got {affine}")
    values = apply_orientation(values, orientation)
    spacing = numpy.linalg.norm(affine @ inv_ornt_aff(orientation, shape[:3]), axis=0)[:3]
    extent = [round(n * float(step), 1) for n, step in zip(values.shape, spacing)]
    if not EXTENT[0] <= min(extent) <= max(extent) <= EXTENT[1]:
        raise VolumeError(
            f"{path}: expected {EXTENT[0]} to {EXTENT[1]} mm along every axis, got {extent}: are the affine's units mm?"
        )
    x, y, z = (float(value) for value in spacing)
    return Volume(torch.from_numpy(numpy.ascontiguousarray(values.transpose(2, 1, 0))), (z, y, x), image)


def _orientation(affine: numpy.ndarray | None) -> numpy.ndarray | None:
    """nibabel's, of the axes; None where axes have no direction of their own."""
    if affine is None or not numpy.isfinite(affine).all() or abs(numpy.linalg.det(affine[:3, :3])) < 1e-6:
        return None
    orientation = io_orientation(affine)  # NaN for an axis that is too short or too oblique beside the others
    return None if numpy.isnan(orientation).any() else orientation


def _check_sum(path: Path) -> None:
    """nibabel stops before the checksum at the end of a compressed file; reading on to it finds damage in between."""
    with gzip.open(path) as file:
        while file.read(1 << 20):
            pass


def write(path: str | os.PathLike, labels: Tensor, like: Volume) -> None:
    """Labels [D, H, W], on the grid of ``like.values``, to a NIfTI file with the axes and the affine of ``like.image``.

    The file appears whole or not at all.

    Raises:
        VolumeError: the name is not one of NIfTI, or its folder does not exist.
    """
    path = Path(path)
    check_output(path)
    back = ornt_transform(axcodes2ornt("RAS"), io_orientation(like.image.affine))
    values = apply_orientation(labels.to(torch.uint8).numpy().transpose(2, 1, 0), back)
    image = type(like.image)(numpy.ascontiguousarray(values), like.image.affine)
    for name in ("sform", "qform"):
        getattr(image, f"set_{name}")(*getattr(like.image, f"get_{name}")(coded=True))
    image.header["xyzt_units"] = like.image.header["xyzt_units"]  # as it is: not every code is of a unit
    suffix = ".nii.gz" if path.name.endswith(".gz") else ".nii"
    partial = path.with_name(f".{path.name.removesuffix(suffix)}.{os.getpid()}.partial{suffix}")
    try:
        nibabel.save(image, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_output(path: Path) -> None:
    """VolumeError unless a NIfTI file of that name can be made."""
    if not path.name.endswith(SUFFIXES):
        raise VolumeError(f"{path}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise VolumeError(f"{path}: there is no folder {path.parent}")


def resample(values: Tensor, size: Sequence[int]) -> Tensor:
    """``values`` float32 [..., D, H, W] at another (D, H, W) over the same field of view.

    Trilinear; where it shrinks, over all that a new voxel covers.
    """
    *front, depth, height, width = values.shape
    plane = F.interpolate(
        values.reshape(-1, depth, height, width), size=tuple(size[1:]), mode="bilinear", antialias=True
    )
    plane = plane.flatten(2).unsqueeze(1)  # [N, 1, D, H' * W']
    whole = F.interpolate(plane, size=(size[0], plane.shape[-1]), mode="bilinear", antialias=True)
    return whole.reshape(*front, *size)


def normalise(values: Tensor) -> Tensor:
    """Zero mean and unit deviation over the head, which is what is brighter than the mean; clipped to [-4, 4]."""
    head = values[values > values.mean()]
    return ((values - head.mean()) / head.std().clamp_min(1e-6)).clamp(-4, 4)
