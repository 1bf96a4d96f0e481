"""The converters by their names of acsconv 0.1.1: classes whose "instances" are the converted networks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn

from .convert import convert

#: Where modules keep their hooks.
_HOOKS = [
    name for name in vars(nn.Module()) if name.startswith(("_forward_", "_backward_", "_is_full_backward"))
]


class BaseConverter:
    """Base of the converters: ``Converter(model)`` converts ``model`` in place and returns it.

    What comes back is the network itself, a ``torch.nn.Module``; ``.model`` gives it once more, as acsconv 0.1.1 did.
    :func:`convert` has more to offer.

    A subclass sets ``to``, or, as in 0.1.1, ``target_conv``: a class for volumes with the arguments of ``nn.Conv2d``,
    of which :meth:`convert_conv_kwargs` is given the 2D layer's and returns the new layer's. Its weights are loaded
    from the 2D layer, all of them. Of two of these, that of the more derived class holds.

    ``memory_efficient=True``: see :func:`acsconv.memory.make_memory_efficient`.

    Raises:
        TypeError: a subclass has an ``__init__`` or ``convert_module``, which nothing would call, or neither ``to`` nor
            ``target_conv``.
    """

    to: ClassVar[str | Callable[[nn.Conv2d], nn.Module] | None] = None
    target_conv: ClassVar[type[nn.Module] | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("__init__", "convert_module"):
            if getattr(cls, name, None) is not getattr(object, name, None):
                raise TypeError(
                    f"{cls.__name__}: {name} is never called here; set `target_conv` and `convert_conv_kwargs`, or use "
                    "acsconv.converters.convert, rule and module_rule"
                )
        for base in cls.__mro__:
            if "to" in vars(base):
                break
            if {"target_conv", "convert_conv_kwargs"} & vars(base).keys():
                cls.to = None
                break
        if cls.to is None and cls.target_conv is None and "convert_conv_kwargs" in vars(cls):
            raise TypeError(
                f"{cls.__name__}: convert_conv_kwargs gives arguments to `target_conv`; set it, too"
            )

    def __new__(cls, model: nn.Module, *, memory_efficient: bool = False) -> nn.Module:
        return cls._convert(model, memory_efficient=memory_efficient)

    @classmethod
    def _convert(cls, model: nn.Module, **options: Any) -> nn.Module:
        if cls.to is None and cls.target_conv is None:
            raise TypeError(f"{cls.__name__}: a converter sets `to` or `target_conv`")
        return convert(model, cls._layer if cls.to is None else cls.to, inplace=True, **options)

    def convert_conv_kwargs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of ``target_conv`` from those of an ``nn.Conv2d`` (``bias``: True or False)."""
        return kwargs

    @classmethod
    def _layer(cls, conv: nn.Conv2d) -> nn.Module:
        names = inspect.signature(nn.Conv2d).parameters
        kwargs = {name: getattr(conv, name) for name in names if name not in ("device", "dtype", "bias")}
        kwargs["bias"] = conv.bias is not None
        converter = object.__new__(cls)
        layer = cls.target_conv(**converter.convert_conv_kwargs(kwargs))
        lost = layer.load_state_dict(conv.state_dict(), strict=False).unexpected_keys
        if lost:
            raise ValueError(
                f"target_conv: {cls.target_conv.__name__} has no {', '.join(lost)} to take the 2D layer's"
            )
        for name, parameter in conv.named_parameters():
            layer.get_parameter(name).requires_grad_(parameter.requires_grad)
        for name in _HOOKS:  # the dicts themselves, so that their handles still remove them
            if not vars(layer)[name]:
                vars(layer)[name] = vars(conv)[name]
        return layer.to(device=conv.weight.device, dtype=conv.weight.dtype).train(conv.training)
