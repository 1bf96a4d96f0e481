"""Trains the proof of concept's 2D U-Net on images of squares and circles.

    python experiments/poc/generate_poc_data.py
    python experiments/poc/train_poc_shape.py
    torchrun --nproc-per-node 2 -- experiments/poc/train_poc_shape.py --devices 2 --run mine   # it needs a name there

Writes ``tmp/poc/noise0.5/shape/<run>/``: ``model.dat`` (the best epoch's weights), ``result.json``, logs. A run that
was interrupted goes on when it is started again with its ``--run``.
"""

from __future__ import annotations

if not __package__:
    import _init_paths  # noqa: F401

from experiments.mylib.options import parse
from experiments.poc.poc_config import SHAPE_CLASSES, POCShapeConfig
from experiments.poc.poc_dataset import BaseDatasetShape
from experiments.poc.train_common import summary, train_on
from experiments.poc.unet import UNet


def train_shape(config: POCShapeConfig, *, progress: bool = True) -> dict:
    """Trains the 2D network; returns the result, see :func:`experiments.poc.train_common.train_on`."""
    return train_on(
        config,
        lambda: UNet(len(SHAPE_CLASSES)),
        SHAPE_CLASSES,
        BaseDatasetShape,
        config.batch_size,
        optimizer="sgd",
        settings={},
        progress=progress,
    )


if __name__ == "__main__":
    print(summary(train_shape(parse(POCShapeConfig, __doc__))))
