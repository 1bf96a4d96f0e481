"""Trains a network to segment lung nodules.

    python experiments/lidc/train_segmentation.py --data FOLDER --conv ACSConv

``--help`` lists the settings; README.md says where the data comes from.
"""

if not __package__:
    import _init_paths  # noqa: F401

from functools import partial

from experiments.lidc.experiment import run
from experiments.lidc.lidc_config import LIDCSegConfig
from experiments.lidc.lidc_dataset import LIDCSegDataset
from experiments.lidc.loss import soft_dice_loss
from experiments.lidc.networks import SEGMENTATION
from experiments.mylib.options import parse
from experiments.mylib.segmentation import SegmentationModule


def main(config: LIDCSegConfig) -> dict:
    """Trains and tests; see :func:`experiments.lidc.experiment.run`."""
    module = partial(SegmentationModule, class_names=("background", "nodule"), loss=soft_dice_loss)
    return run(config, LIDCSegDataset, SEGMENTATION, module, "val_dice")


if __name__ == "__main__":
    print(main(parse(LIDCSegConfig, __doc__)))
