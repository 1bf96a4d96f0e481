"""The layers: :class:`ACSConv`, :class:`ACSConvTranspose`, :class:`SoftACSConv` and :class:`Conv2_5d`."""

from .acsconv import ACSConv
from .acsconv_transpose import ACSConvTranspose
from .conv2_5d import Conv2_5d
from .soft_acsconv import SoftACSConv

__all__ = ["ACSConv", "ACSConvTranspose", "Conv2_5d", "SoftACSConv"]
