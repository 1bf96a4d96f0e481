"""Trains and evaluates a network on a data set of MedMNIST3D.

    python experiments/medmnist3d/train_and_eval.py --data_flag organmnist3d --conv ACSConv --model_flag resnet18

The settings are those of the published experiments (MedMNIST/experiments), and have their names. ``--help`` lists
them; README.md says where the data comes from.
"""

if not __package__:
    import _init_paths  # noqa: F401

from experiments.medmnist3d.experiment import MedMNIST3DConfig, run
from experiments.mylib.options import parse

if __name__ == "__main__":
    result = run(parse(MedMNIST3DConfig, __doc__))
    for split, metrics in (result["evaluation"] or {}).items():
        print(split, metrics)
