"""Trains a network to tell malignant lung nodules from benign ones.

    python experiments/lidc/train_classification.py --data FOLDER --conv ACSConv

``--help`` lists the settings; README.md says where the data comes from.
"""

if not __package__:
    import _init_paths  # noqa: F401

from functools import partial

from experiments.lidc.experiment import run
from experiments.lidc.lidc_config import LIDCClassConfig
from experiments.lidc.lidc_dataset import LIDCTwoClassDataset
from experiments.lidc.networks import CLASSIFICATION
from experiments.mylib.classification import ClassificationModule
from experiments.mylib.options import parse


def main(config: LIDCClassConfig) -> dict:
    """Trains and tests; see :func:`experiments.lidc.experiment.run`."""
    module = partial(ClassificationModule, class_names=("benign", "malignant"))
    return run(config, LIDCTwoClassDataset, CLASSIFICATION, module, "val_auc")


if __name__ == "__main__":
    print(main(parse(LIDCClassConfig, __doc__)))
