"""The networks of the LIDC-IDRI experiments, with the weights that the settings ask for."""

from __future__ import annotations

from acsconv.models.densenet import ClsDenseNet, FCNDenseNet
from acsconv.models.resnet import ClsResNet, FCNResNet
from acsconv.models.vgg import FCNVGG, ClsVGG
from torch import nn

from experiments.lidc.lidc_config import LIDCSegConfig
from experiments.lidc.load_pretrained_weights_funcs import (
    load_mednet_pretrained_weights,
    load_video_pretrained_weights,
)
from experiments.mylib.files import read_checkpoint

SEGMENTATION = {"resnet18": FCNResNet, "densenet121": FCNDenseNet, "vgg16": FCNVGG}
CLASSIFICATION = {"resnet18": ClsResNet, "densenet121": ClsDenseNet, "vgg16": ClsVGG}
LAYERS = {"ACSConv": "acs", "SoftACSConv": "soft", "Conv2_5d": "2.5d", "Conv3d": "3d"}
IMAGENET = (
    "torchvision's ImageNet weights of resnet18, densenet121 and vgg16_bn (not vgg16) are listed in "
    "https://pytorch.org/vision/stable/models.html."
)


def build(config: LIDCSegConfig, networks: dict[str, type[nn.Module]]) -> nn.Module:
    """The network of ``networks`` (:data:`SEGMENTATION` or :data:`CLASSIFICATION`) that ``config`` describes.

    Input [N, 3, D, H, W], or [N, 1, D, H, W] with the weights of MedicalNet; two classes.

    Raises:
        FileNotFoundError, ValueError: a file of weights is missing, damaged, or does not fit; the message names it.
        OSError: weights could not be downloaded.
    """
    options = {
        "conv": LAYERS[config.conv],
        "in_channels": config.channels,
        "memory_efficient": config.memory_efficient,
    }
    if config.backbone == "resnet18":
        options["shortcut"] = config.shortcut
    imagenet = config.weights in ("pretrained", "i3d")
    file = config.imagenet_pretrain_path
    if imagenet and file:
        imagenet = read_checkpoint(file, IMAGENET)
    try:
        network = networks[config.backbone](imagenet, 2, config.backbone, **options)
    except ValueError as error:
        raise ValueError(f"{file or 'ImageNet'}: {error}") from error
    except OSError as error:
        raise OSError(
            f"could not download ImageNet weights ({error}); --imagenet-pretrain-path: {IMAGENET}"
        ) from error
    if config.weights == "video":
        load_video_pretrained_weights(network, config.video_resnet18_pretrain_path)
    elif config.weights == "mednet":
        load_mednet_pretrained_weights(network, config.mednet_resnet18_pretrain_path)
    return network
