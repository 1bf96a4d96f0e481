"""The layers: :class:`ACSConv`, :class:`SoftACSConv` and :class:`Conv2_5d`."""

from .acsconv import ACSConv
from .conv2_5d import Conv2_5d
from .soft_acsconv import SoftACSConv

__all__ = ["ACSConv", "Conv2_5d", "SoftACSConv"]
