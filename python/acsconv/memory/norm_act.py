"""Convolution, norm and activation as one module that stores one tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .recompute import recomputing
from .rules import note_norm

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm)


class ACSConvNormAct(nn.Sequential):
    """A convolution, a norm and an activation that store one tensor for the backward pass, not two or three.

    What is stored is the convolution's output (the norm needs it) and the norm's statistics. In a chain of such modules
    the next convolution's input is not stored but made again from these; the first one's, and that of a module that
    stands alone, is.

    Args:
        args: the modules, as for ``nn.Sequential``: a convolution for volumes (:class:`~acsconv.operators.ACSConv`,
            ``nn.Conv3d``, ...), then a norm (``BatchNorm``, ``SyncBatchNorm``, ``InstanceNorm``, ``GroupNorm``), an
            activation, or both; or one ``OrderedDict`` of them.

    Shape:
        input: that of the convolution; residual: that of its output; output: likewise.

    Parameters, buffers, ``state_dict`` keys, hooks and results are those of ``nn.Sequential`` of the same modules, the
    forward pass bit for bit. Without gradients and in eval mode a ``BatchNorm`` is folded into the convolution, which
    gives the same within rounding.

    Raises:
        TypeError: other modules than these, or in another order.

    Example:
        >>> block = ACSConvNormAct(ACSConv(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(inplace=True))
        >>> block(torch.rand(1, 3, 16, 16, 16)).shape
        torch.Size([1, 8, 16, 16, 16])
    """

    def __init__(self, *args) -> None:
        super().__init__(*args)
        norms = [isinstance(module, _NORMS) for module in self]
        in_order = 2 <= len(norms) <= 3 and sum(norms) <= 1 and not norms[0]
        if not in_order or (len(norms) == 3 and not norms[1]):
            got = ", ".join(type(module).__name__ for module in self)
            raise TypeError(
                f"expected a convolution, then a norm, an activation or both, got {got or 'nothing'}"
            )
        if not isinstance(getattr(self[0], "weight", None), Tensor):
            raise TypeError(f"expected a convolution, got {type(self[0]).__name__}")

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """``residual`` is added in front of the activation."""
        conv, norm, act = self._parts()
        if _can_fold(conv, norm):
            out = _folded(conv, norm, input)
            out = out if residual is None else out + residual
            return out if act is None else act(out)
        with recomputing():
            out = conv(input)
            if norm is not None:
                out = norm(out)
                known = note_norm(norm, (), out)
                out = out if known is None else known
            if residual is not None:
                out = out + residual
            return out if act is None else act(out)

    def _parts(self) -> tuple[nn.Module, nn.Module | None, nn.Module | None]:
        """(convolution, norm or None, activation or None)."""
        conv, *rest = self
        norm = rest.pop(0) if isinstance(rest[0], _NORMS) else None
        return conv, norm, rest[0] if rest else None


def _can_fold(conv: nn.Module, norm: nn.Module | None) -> bool:
    """Whether norm(conv(x)) is, now, a convolution with other weights, and nobody looks at what is between."""
    return (
        isinstance(norm, nn.modules.batchnorm._BatchNorm)
        and not torch.is_grad_enabled()
        and not norm.training
        and norm.running_mean is not None
        and "weight" in conv._parameters
        and not getattr(conv, "transposed", False)
        and not (conv._forward_hooks or norm._forward_hooks or norm._forward_pre_hooks)
    )


def _folded(conv: nn.Module, norm: nn.Module, input: Tensor) -> Tensor:
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    shift = shift if norm.bias is None else shift + norm.bias
    channels = (-1, *[1] * (conv.weight.dim() - 1))
    changed = {"weight": (conv.weight * scale.view(channels)).to(conv.weight.dtype)}
    if conv.bias is not None:
        changed["bias"] = (conv.bias * scale + shift).to(conv.bias.dtype)
    out = functional_call(conv, changed, (input,))
    norm._check_input_dim(out)  # as the norm would: no batch, no guess which dimension is the channels
    return out if conv.bias is not None else out.add_(shift.to(out.dtype).view(-1, *[1] * (out.dim() - 2)))
