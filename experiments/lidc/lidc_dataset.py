"""The nodules of LIDC-IDRI as ACSConv's authors published them.

train_test_split.csv                          columns ``train`` and ``test``: names of files, one column longer
nodule/<name>.npz                             ``voxel``: [D, H, W] of 0..255, 1 mm, the nodule in the middle;
                                              ``answer1``: its mask by the first radiologist, 0 and 1
info/lidc_nodule_info_new_with_subset.csv     columns ``index`` (names without .npz) and ``malignancy_mode`` (1..5)
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from experiments.mylib.files import read_npz, require

SOURCE = (
    "The data of LIDC-IDRI, prepared by ACSConv's authors, is one archive, linked in "
    "https://github.com/M3DV/ACSConv/tree/master/experiments/lidc; unzip it, and give its folder as --data."
)
MALIGNANT = {1: 0, 2: 0, 4: 1, 5: 1}  # 3, undecided, is left out


class _Nodules(Dataset):
    """Crops of the nodules in ``data_path/nodule``.

    Args:
        crop_size: voxels of the crop along each axis, an even number.
        move: with ``augment``, the crop's middle is up to so many voxels off the nodule's, along each axis.
        train: the training nodules, else those that test.
        copy_channels: three equal channels, as networks pretrained on photographs take them; else one.
        augment: crops are moved, rotated by quarter turns and reflected, from torch's random numbers; by default those
            of the training nodules.
    """

    def __init__(
        self,
        crop_size: int,
        move: int,
        data_path: str | Path,
        train: bool = True,
        copy_channels: bool = True,
        augment: bool | None = None,
    ) -> None:
        self.crop_size, self.move = crop_size, move
        self.augment = train if augment is None else augment
        self.channels = 3 if copy_channels else 1
        names = self.names(data_path, train)
        self.files = [Path(data_path) / "nodule" / name for name in names]
        missing = [str(file) for file in self.files if not file.is_file()]
        if missing:
            listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise FileNotFoundError(f"{len(missing)} of {len(names)} files are missing: {listed}. {SOURCE}")

    def names(self, data_path: str | Path, train: bool) -> list[str]:
        """The files of the nodules that are items."""
        return _split(data_path, train)

    def __len__(self) -> int:
        return len(self.files)

    def crops(self, index: int, *arrays: str) -> list[Tensor]:
        """The arrays of nodule ``index``, each [crop_size] * 3 float32, all cut, turned and reflected alike."""
        file = self.files[index]
        volumes = read_npz(file, arrays, SOURCE)
        voxel = volumes["voxel"]
        needed = self.crop_size + (2 * self.move if self.augment else 0)
        if voxel.ndim != 3 or min(voxel.shape) < needed:
            raise ValueError(
                f"{file}: voxel must be [D, H, W], each at least {needed}, got {list(voxel.shape)}"
            )
        offset, turns, axis = [0, 0, 0], [0, 0, 0], -1
        if self.augment:
            offset = torch.randint(-self.move, self.move + 1, (3,)).tolist()
            turns, axis = torch.randint(4, (3,)).tolist(), int(torch.randint(4, ())) - 1
        starts = [size // 2 + by - self.crop_size // 2 for size, by in zip(voxel.shape, offset)]
        window = tuple(slice(start, start + self.crop_size) for start in starts)
        found = []
        for name, volume in volumes.items():
            if volume.shape != voxel.shape or volume.dtype.kind not in "biuf":
                raise ValueError(
                    f"{file}: {name} must be {list(voxel.shape)} numbers, got {list(volume.shape)} {volume.dtype}"
                )
            crop = torch.from_numpy(volume[window].astype(np.float32))
            if not ((crop >= 0) & (crop <= 255)).all():  # nor is NaN
                low, high = crop.min().item(), crop.max().item()
                raise ValueError(f"{file}: {name} must be 0 to 255, got {low} to {high}")
            for count, axes in zip(turns, ((0, 1), (0, 2), (1, 2))):
                crop = crop.rot90(count, axes)
            found.append(crop.flip(axis) if axis >= 0 else crop)
        return found

    def image(self, voxel: Tensor) -> Tensor:
        """[D, H, W] of 0..255 -> [channels, D, H, W] of -1..0, the range of the published experiments."""
        return (voxel / 255 - 1).expand(self.channels, *voxel.shape).contiguous()


class LIDCSegDataset(_Nodules):
    """Nodules and their masks; arguments as in the original, see :class:`_Nodules`.

    Items:
        (volume [channels, crop_size, crop_size, crop_size] float32, mask [crop_size, crop_size, crop_size] int64 of
        0 and 1).

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged, or of another format; the message names it.
    """

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        voxel, mask = self.crops(index, "voxel", "answer1")
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError(
                f"{self.files[index]}: answer1 must be a mask of 0 and 1, got {mask.unique().tolist()}"
            )
        return self.image(voxel), mask.long()


class LIDCTwoClassDataset(_Nodules):
    """Nodules, benign (malignancy 1 and 2) or malignant (4 and 5); arguments as in the original, see :class:`_Nodules`.

    Items:
        (volume [channels, crop_size, crop_size, crop_size] float32, 0 or 1).

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged, or of another format; the message names it.
    """

    def names(self, data_path: str | Path, train: bool) -> list[str]:
        self.malignancies = _malignancies(data_path)
        return [name for name in super().names(data_path, train) if Path(name).stem in self.malignancies]

    @property
    def labels(self) -> list[int]:
        """0 (benign) or 1 (malignant) for every nodule."""
        return [self.malignancies[file.stem] for file in self.files]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.image(*self.crops(index, "voxel")), self.malignancies[self.files[index].stem]


def _split(data_path: str | Path, train: bool) -> list[str]:
    """The names in one column of the list of nodules; the shorter column ends with empty cells."""
    column = "train" if train else "test"
    rows = _table(Path(data_path) / "train_test_split.csv", column)
    names = [row[column] for row in rows if row[column]]
    if not names:
        raise ValueError(f"{Path(data_path) / 'train_test_split.csv'}: column {column} is empty. {SOURCE}")
    return names


def _malignancies(data_path: str | Path) -> dict[str, int]:
    """Name without .npz -> 0 (benign) or 1 (malignant), undecided ones left out."""
    file = Path(data_path) / "info" / "lidc_nodule_info_new_with_subset.csv"
    labels = {}
    for row in _table(file, "index", "malignancy_mode"):
        try:
            grade = float(row["malignancy_mode"])
        except ValueError:
            grade = 0
        if grade not in (1, 2, 3, 4, 5):
            raise ValueError(
                f"{file}: malignancy_mode of {row['index']} must be 1 to 5, got {row['malignancy_mode']!r}"
            )
        if grade != 3:
            labels[row["index"]] = MALIGNANT[int(grade)]
    return labels


def _table(file: Path, *columns: str) -> list[dict[str, str]]:
    with require(file, SOURCE).open(newline="", encoding="utf-8-sig") as lines:
        try:
            reader = csv.DictReader(lines, restval="")
            missing = set(columns) - set(reader.fieldnames or ())
            rows = list(reader)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is damaged or no table ({error}). {SOURCE}") from error
    if missing:
        raise ValueError(f"{file} lacks the column {', '.join(sorted(missing))}. {SOURCE}")
    return rows
