"""2D networks made 3D, by the names that the original's configurations give the convolutions."""

from __future__ import annotations

from acsconv.converters import ACSConverter, Conv2_5dConverter, Conv3dConverter, SoftACSConverter
from torch import nn

CONVS = ("ACSConv", "SoftACSConv", "Conv2_5d", "Conv3d")


def to_3d(network_2d: nn.Module, conv: str, *, pretrained: bool) -> nn.Module:
    """Converts a 2D network in place.

    Args:
        network_2d: a network that takes images [N, C, H, W].
        conv: one of :data:`CONVS`.
        pretrained: whether its weights are to be kept. ACS, Soft ACS and 2.5D layers always take them over: a network
            with random weights then has random weights. ``Conv3d`` repeats them along D and divides (I3D: Carreira and
            Zisserman, CVPR 2017), or begins with weights of its own.

    Returns:
        The network, which takes volumes [N, C, D, H, W].

    Raises:
        ValueError: an unknown ``conv``.
    """
    if conv not in CONVS:
        raise ValueError(f"conv: expected one of {CONVS}, got {conv!r}")
    if conv == "Conv3d":
        return Conv3dConverter(network_2d, i3d_repeat_axis=-3 if pretrained else None)
    return {"ACSConv": ACSConverter, "SoftACSConv": SoftACSConverter, "Conv2_5d": Conv2_5dConverter}[conv](
        network_2d
    )
