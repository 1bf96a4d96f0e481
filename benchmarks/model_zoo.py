"""The networks that the coverage table is about: what is tried, how it is built, what is left out and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import nn
from vision import prepare_torchvision


class Entry(NamedTuple):
    """A network of a library.

    Attributes:
        name: ``library/model`` or ``library/decoder/encoder``.
        build: gives the 2D network with random weights.
        channels: of its input.
        out_of_scope: why it is not tried, or None.
    """

    name: str
    build: Callable[[], nn.Module]
    channels: int = 3
    out_of_scope: str | None = None


_TRANSFORMER = "a transformer: position tables, windows or tokens of a 2D image"
_NO_IMAGE = "its input is not one image"

_TORCHVISION_OUT = {
    "vit_": _TRANSFORMER,
    "swin": _TRANSFORMER,
    "maxvit": _TRANSFORMER,
    "quantized_": "quantised: no floating-point weights to convert",
    "raft": _NO_IMAGE,
    "rcnn": "detection: takes lists of images with boxes",
    "fcos": "detection: takes lists of images with boxes",
    "retinanet": "detection: takes lists of images with boxes",
    "ssd": "detection: takes lists of images with boxes",
    **dict.fromkeys(("mc3_18", "mvit_", "r2plus1d", "r3d_18", "s3d", "swin3d"), "video: 3D already"),
}

#: The files of timm whose networks are convolutional.
_TIMM_CONVOLUTIONAL = [
    "byobnet",
    "convmixer",
    "convnext",
    "cspnet",
    "cspnext",
    "densenet",
    "dla",
    "dpn",
    "edgenext",
    "efficientnet",
    "fasternet",
    "focalnet",
    "ghostnet",
    "hardcorenas",
    "hgnet",
    "hrnet",
    "inception_next",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "lcnetv2",
    "mambaout",
    "metaformer",
    "mobilenetv3",
    "nasnet",
    "nfnet",
    "pnasnet",
    "rdnet",
    "regnet",
    "repghost",
    "repvit",
    "res2net",
    "resnest",
    "resnet",
    "resnetv2",
    "rexnet",
    "selecsls",
    "senet",
    "sknet",
    "starnet",
    "tresnet",
    "vgg",
    "vovnet",
    "xception",
    "xception_aligned",
]

_TIMM_OUT = {
    "caformer": _TRANSFORMER,
    "mobilenetv4_hybrid": "convolutions mixed with attention",
}

_SMP_DECODERS = [
    "Unet",
    "UnetPlusPlus",
    "MAnet",
    "Linknet",
    "FPN",
    "PSPNet",
    "PAN",
    "DeepLabV3",
    "DeepLabV3Plus",
    "UPerNet",
    "Segformer",
]

#: One small encoder of each family, tried with every decoder.
_SMP_ENCODERS = [
    "resnet18",
    "mobilenet_v2",
    "efficientnet-b0",
    "timm-tf_efficientnet_lite0",
    "mobileone_s0",
    "timm-skresnet18",
    "vgg11_bn",
    "dpn68",
    "densenet121",
    "se_resnet50",
    "resnext50_32x4d",
    "xception",
    "inceptionv4",
    "inceptionresnetv2",
    "timm-efficientnet-b0",
    "tu-convnext_atto",
    "tu-mobilenetv3_small_050",
    "tu-regnetx_002",
]


def entries() -> Iterator[Entry]:
    """Every network, library by library."""
    prepare_torchvision()
    yield from torchvision_entries()
    yield from timm_entries()
    yield from smp_entries()
    yield from monai_entries()


def torchvision_entries() -> Iterator[Entry]:
    import torchvision

    for name in torchvision.models.list_models():
        reason = next((why for part, why in _TORCHVISION_OUT.items() if part in name), None)

        def build(name: str = name) -> nn.Module:
            options = {"weights": None}
            if name in ("googlenet", "inception_v3"):
                options["init_weights"] = True
            if any(part in name for part in ("fcn", "deeplab", "lraspp")):
                options["weights_backbone"] = None
            return torchvision.models.get_model(name, **options)

        yield Entry(f"torchvision/{name}", build, out_of_scope=reason)


def timm_entries() -> Iterator[Entry]:
    import timm

    for file in timm.list_modules():
        for name in timm.list_models(module=file):
            reason = None if file in _TIMM_CONVOLUTIONAL else f"{file}: attention, tokens or windows"
            reason = next((why for part, why in _TIMM_OUT.items() if part in name), reason)
            yield Entry(f"timm/{name}", lambda name=name: timm.create_model(name), out_of_scope=reason)


def smp_entries() -> Iterator[Entry]:
    import segmentation_models_pytorch as smp

    for decoder in _SMP_DECODERS:
        for encoder in _SMP_ENCODERS:

            def build(decoder: str = decoder, encoder: str = encoder) -> nn.Module:
                return getattr(smp, decoder)(encoder, encoder_weights=None, classes=3)

            yield Entry(f"smp/{decoder}/{encoder}", build)
    for encoder in smp.encoders.get_encoder_names():
        if encoder.startswith("mit_"):
            yield Entry(f"smp/Unet/{encoder}", lambda: None, out_of_scope=_TRANSFORMER)
    yield Entry("smp/DPT", lambda: None, out_of_scope=_TRANSFORMER)


def monai_entries() -> Iterator[Entry]:
    import monai.networks.nets as nets

    levels = {"channels": (8, 16, 32, 64), "strides": (2, 2, 2)}
    image = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3}
    se = {"spatial_dims": 2, "in_channels": 3, "num_classes": 5}
    built = {
        "AHNet": lambda: nets.AHNet(spatial_dims=2, in_channels=3, out_channels=3, upsample_mode="bilinear"),
        "AttentionUnet": lambda: nets.AttentionUnet(**image, **levels),
        "AutoEncoder": lambda: nets.AutoEncoder(**image, channels=(8, 16, 32), strides=(2, 2, 2)),
        "AutoencoderKL": lambda: nets.AutoencoderKL(
            **image, channels=(8, 16), num_res_blocks=1, norm_num_groups=4, attention_levels=(False, False)
        ),
        "BasicUNet": lambda: nets.BasicUNet(**image, features=(8, 8, 16, 32, 64, 8)),
        "BasicUNetPlusPlus": lambda: nets.BasicUNetPlusPlus(**image, features=(8, 8, 16, 32, 64, 8)),
        "DenseNet121": lambda: nets.DenseNet121(**image),
        "DynUNet": lambda: nets.DynUNet(
            **image, kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2]
        ),
        "EfficientNetBN": lambda: nets.EfficientNetBN("efficientnet-b0", pretrained=False, spatial_dims=2),
        "FlexibleUNet": lambda: nets.FlexibleUNet(3, 3, "efficientnet-b0", spatial_dims=2),
        "HighResNet": lambda: nets.HighResNet(**image),
        "MedNeXtS": lambda: nets.MedNeXtS(**image),
        "QuickNAT": lambda: nets.Quicknat(num_classes=3, num_channels=1, num_filters=16),
        "ResNet": lambda: nets.resnet18(spatial_dims=2, n_input_channels=1, num_classes=3),
        "SEResNet50": lambda: nets.SEResNet50(**se),
        "SEResNext50": lambda: nets.SEResNext50(**se),
        "SegResNet": lambda: nets.SegResNet(**image, init_filters=8),
        "SegResNetDS": lambda: nets.SegResNetDS(**image, init_filters=8),
        "SegResNetVAE": lambda: nets.SegResNetVAE((64, 64), **image, init_filters=8),
        "UNet": lambda: nets.UNet(**image, **levels, num_res_units=2),
        "VNet": lambda: nets.VNet(**image),
        "VQVAE": lambda: nets.VQVAE(
            **image,
            channels=(8, 16),
            num_res_channels=(8, 16),
            num_res_layers=1,
            embedding_dim=8,
            downsample_parameters=((2, 4, 1, 1),) * 2,
            upsample_parameters=((2, 4, 1, 1, 0),) * 2,
        ),
        "VarAutoEncoder": lambda: nets.VarAutoEncoder(2, (1, 64, 64), 3, 4, **levels),
        "ViT": lambda: nets.ViT(1, (64, 64), (16, 16), spatial_dims=2),
        "UNETR": lambda: nets.UNETR(1, 3, (64, 64), spatial_dims=2),
        "SwinUNETR": lambda: nets.SwinUNETR(1, 3, spatial_dims=2),
        "HoVerNet": lambda: nets.HoVerNet(),
        "PatchDiscriminator": lambda: nets.PatchDiscriminator(2, 8, 1, num_layers_d=2),
        "VoxelMorphUNet": lambda: nets.VoxelMorphUNet(
            spatial_dims=2,
            in_channels=2,
            unet_out_channels=8,
            channels=(8, 16, 16, 16),
            final_conv_channels=(8,),
        ),
        "LocalNet": lambda: nets.LocalNet(2, 2, 8, extract_levels=(0, 1, 2), out_channels=2),
        "RegUNet": lambda: nets.RegUNet(2, 2, 8, 2, out_channels=2),
    }
    three = {"AHNet", "EfficientNetBN", "FlexibleUNet", "SEResNet50", "SEResNext50", "HoVerNet"}
    two = {"VoxelMorphUNet", "LocalNet", "RegUNet"}
    out = {
        **dict.fromkeys(("ViT", "UNETR", "SwinUNETR"), _TRANSFORMER),
        **dict.fromkeys(("SegResNetVAE", "VarAutoEncoder"), "a Linear over a fixed image size"),
        "AutoencoderKL": "its output is drawn at random",
        "HoVerNet": "crops by fixed sizes of its 2D tiles",
    }
    for name, build in built.items():
        channels = 3 if name in three else 2 if name in two else 1
        yield Entry(f"monai/{name}", build, channels, out.get(name))
