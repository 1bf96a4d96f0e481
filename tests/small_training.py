"""A training of seconds, for tests: in this process, in one that is killed, or in two at once.

python small_training.py FOLDER [--devices N] [--delay SECONDS]
"""

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in (".", "python")]

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import Dataset  # noqa: E402

from experiments.mylib.data import VolumeDataModule  # noqa: E402
from experiments.mylib.segmentation import SegmentationModule  # noqa: E402
from experiments.mylib.training import train  # noqa: E402

CLASSES = ("background", "low", "high")
EPOCHS = 4


class Volumes(Dataset):
    """Noise, to be told apart by its height: (float32 [1, 6, 6, 6], labels int64 [6, 6, 6])."""

    def __init__(self, count: int, seed: int, delay: float = 0.0, spoilt: int | None = None) -> None:
        self.x = torch.randn(count, 1, 6, 6, 6, generator=torch.Generator().manual_seed(seed))
        self.y = (self.x[:, 0] > -0.5).long() + (self.x[:, 0] > 0.5).long()
        self.delay = delay
        if spoilt is not None:
            self.x[spoilt] = torch.nan

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(self.delay)
        return self.x[index], self.y[index]


def network(dropout: float) -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.Dropout(dropout), nn.ReLU(), nn.Conv3d(8, 3, 1))


def run(
    folder: Path,
    *,
    devices: int = 1,
    delay: float = 0.0,
    spoilt: int | None = None,
    dropout: float = 0.2,
    lr: float = 0.02,
    validation: bool = True,
    **options,
) -> dict:
    """Eight volumes in steps of four, on all devices together."""
    torch.manual_seed(3)
    module = SegmentationModule(network(dropout), CLASSES, lr=lr, milestones=(3,))
    data = VolumeDataModule(
        Volumes(8, 0, delay, spoilt),
        Volumes(4, 1) if validation else None,
        Volumes(4, 2),
        batch_size=4 // devices,
        seed=5,
    )
    options = {"epochs": EPOCHS, "seed": 7, "progress": False, "accelerator": "cpu", **options}
    return train(module, data, folder=folder, devices=devices, **options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--delay", type=float, default=0.0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    run(chosen.folder, devices=chosen.devices, delay=chosen.delay, dropout=0.0 if chosen.devices > 1 else 0.2)
