"""Trains the proof of concept's 3D U-Net on volumes of cones, pyramids, cubes, cylinders and balls.

    python experiments/poc/train_poc_voxel.py --conv ACSConv                  # with the newest 2D network's weights
    python experiments/poc/train_poc_voxel.py --conv Conv3d --no-pretrained
    torchrun --nproc-per-node 2 -- experiments/poc/train_poc_voxel.py --devices 2 --run mine   # it needs a name there

The network is the 2D U-Net, converted. Pretrained, it begins with all of the 2D network's weights but the last layer's.
Writes ``tmp/poc/noise0.5/voxel/<conv>/<run>/``: ``model.dat`` (the best epoch's weights), ``result.json``, logs. A run
that was interrupted goes on when it is started again with its ``--run``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

if not __package__:
    import _init_paths  # noqa: F401

from torch import nn

from experiments.mylib.files import read_checkpoint
from experiments.mylib.networks import to_3d
from experiments.mylib.options import parse
from experiments.poc.poc_config import VOXEL_CLASSES, POCVoxelConfig, find_shape_checkpoint
from experiments.poc.poc_dataset import BaseDatasetVoxel
from experiments.poc.train_common import summary, train_on
from experiments.poc.unet import UNet

HEAD = "final."


def build(conv: str, shape_checkpoint: Path | None) -> nn.Module:
    """The 3D network [N, 1, D, H, W] -> [N, 6, D, H, W], with random weights where there is no 2D network's.

    Raises:
        ValueError: ``shape_checkpoint`` is damaged, or of another network; the message names it.
    """
    network = UNet(len(VOXEL_CLASSES))
    if shape_checkpoint is not None:
        source = "train_poc_shape.py writes such files"
        state = read_checkpoint(shape_checkpoint, source)
        body = {name: value for name, value in state.items() if not name.startswith(HEAD)}
        own = {name: value for name, value in network.state_dict().items() if name.startswith(HEAD)}
        try:
            network.load_state_dict({**body, **own})
        except RuntimeError as error:
            raise ValueError(f"{shape_checkpoint} is not of the 2D U-Net; {source}. {error}") from error
    return to_3d(network, conv, pretrained=shape_checkpoint is not None)


def train_voxel(config: POCVoxelConfig, *, progress: bool = True) -> dict:
    """Trains the 3D network; returns the result, see :func:`experiments.poc.train_common.train_on`."""
    checkpoint = find_shape_checkpoint(config) if config.pretrained else None
    settings = {"conv": config.conv, "pretrained": config.pretrained}
    if checkpoint is not None:
        settings["shape_checkpoint"] = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    return train_on(
        config,
        lambda: build(config.conv, checkpoint),
        VOXEL_CLASSES,
        BaseDatasetVoxel,
        config.train_batch_size,
        optimizer="adam",
        settings=settings,
        progress=progress,
    )


if __name__ == "__main__":
    print(summary(train_voxel(parse(POCVoxelConfig, __doc__))))
