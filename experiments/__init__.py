"""Experiments on the library: what ACS convolutions and 2D pretraining bring, measured.

Each folder is one experiment; ``mylib`` is what they share. They need ``pip install acsconv-cuda[experiments]``.
"""

from benchmarks.vision import prepare_torchvision

prepare_torchvision()  # lightning, torchmetrics and monai import torchvision where they find it
