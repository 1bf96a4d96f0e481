"""The four converters of acsconv 0.1.1."""

from __future__ import annotations

from torch import nn

from .base_converter import BaseConverter
from .convert import convert


class ACSConverter(BaseConverter):
    """Converts a 2D network in place to ACS convolutions: ``model_3d = ACSConverter(model_2d)``.

    Args:
        model: a network that takes images [N, C, H, W].
        memory_efficient: see :func:`acsconv.memory.make_memory_efficient`.

    Returns:
        The same module, which now takes volumes [N, C, D, H, W]; see :func:`acsconv.converters.convert`.

    Raises:
        ConversionError: names every module that cannot be converted; nothing has been changed.

    Example:
        >>> model = ACSConverter(torchvision.models.resnet18(weights="DEFAULT"))
        >>> model(torch.rand(1, 3, 64, 64, 64)).shape
        torch.Size([1, 1000])
    """

    to = "acs"


class SoftACSConverter(BaseConverter):
    """Converts a 2D network in place to Soft ACS convolutions, or, with ``mean=True``, to mean ACS convolutions.

    Arguments, result and errors otherwise as :class:`ACSConverter`. Layers of Soft ACS have a parameter
    ``soft_w_core`` more than the 2D layers; a checkpoint without it loads, and leaves it as it is.
    """

    to = "soft"

    def __new__(cls, model: nn.Module, mean: bool = False, *, memory_efficient: bool = False) -> nn.Module:
        if not mean:
            return cls._convert(model, memory_efficient=memory_efficient)
        if cls.to != "soft":
            raise TypeError(f"{cls.__name__}: mean=True has no meaning for layers of one's own")
        return convert(model, "mean", inplace=True, memory_efficient=memory_efficient)


class Conv2_5dConverter(BaseConverter):
    """Converts a 2D network in place to one that convolves slices.

    Args:
        unsqueeze_axis: the axis across which the slices lie: -3 (D), -2 (H) or -1 (W).

    On a volume made by repeating one image, the network gives the 2D network's output. Other arguments, the result and
    errors as :class:`ACSConverter`; weights are 5D, and 2D checkpoints load.
    """

    to = "2.5d"

    def __new__(
        cls, model: nn.Module, unsqueeze_axis: int = -3, *, memory_efficient: bool = False
    ) -> nn.Module:
        return cls._convert(model, unsqueeze_axis=unsqueeze_axis, memory_efficient=memory_efficient)


class Conv3dConverter(BaseConverter):
    """Converts a 2D network in place to ``nn.Conv3d``.

    Args:
        i3d_repeat_axis: the axis (-3, -2 or -1) along which the 2D kernels are repeated, and divided by the
            repetitions; None, as in acsconv 0.1.1, gives the convolutions new weights.

    Other arguments, the result and errors as :class:`ACSConverter`; weights are 5D, and 2D checkpoints load.
    """

    to = "3d"

    def __new__(
        cls, model: nn.Module, i3d_repeat_axis: int | None = None, *, memory_efficient: bool = False
    ) -> nn.Module:
        return cls._convert(model, i3d_repeat_axis=i3d_repeat_axis, memory_efficient=memory_efficient)
