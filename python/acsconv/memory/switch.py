"""The switch: makes any network train in less memory, leaving its modules and its code as they are."""

from __future__ import annotations

import inspect
import sys
import threading
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import nn

from ..operators.base_acsconv import _ACSConv
from . import blocks
from .activation import Rectifier
from .recompute import offer, recomputing
from .rules import note_norm

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_ACTIVATIONS = (
    nn.ELU,
    nn.GELU,
    nn.Hardswish,
    nn.Hardtanh,  # and ReLU6
    nn.LeakyReLU,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Tanh,
)
_CONVOLUTIONS = (nn.modules.conv._ConvNd, _ACSConv)
_POOLINGS = (nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd)
_local = threading.local()


class Change(NamedTuple):
    """A module whose output, or whose activations, are made again: its path, its class, what happens."""

    path: str
    name: str
    note: str


@dataclass
class Report:
    """What the switch found; ``print`` it.

    Attributes:
        changes: norms and activations whose outputs are made again, and blocks that run twice.
        stored: norms and activations whose outputs are stored as before, and why.
        before, after: bytes that one forward pass of the example leaves for the backward pass, parameters apart; None
            without an example.
    """

    changes: list[Change] = field(default_factory=list)
    stored: list[Change] = field(default_factory=list)
    before: int | None = None
    after: int | None = None

    def __str__(self) -> str:
        rows = [*self.changes, *self.stored]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
        lines = ["  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1]), row[2]]) for row in rows]
        if self.before is not None:
            lines.append(
                f"stored for the backward pass: {self.before / 1e6:.1f} MB -> {self.after / 1e6:.1f} MB"
            )
        return "\n".join(lines)


def make_memory_efficient(
    model: nn.Module,
    *,
    budget: int | float | None = None,
    example: Any = None,
    report: bool = False,
) -> nn.Module | tuple[nn.Module, Report]:
    """Makes a network store less for its backward pass, in place.

    From now on, in training, what follows cheaply from stored tensors is made again in the backward pass: outputs of
    norms and activations, residual sums, concatenations, upsampled maps (see :mod:`acsconv.memory.recompute`). The
    network's modules, their code, parameters and ``state_dict`` stay as they are; the forward pass is the same bit for
    bit, gradients are the same within rounding.

    Args:
        model: any network; converted, native, or another one.
        budget: how much may be stored: bytes (an int), or a part of what would be stored without this function (a float
            up to 1.0). The blocks that save most are checkpointed, which runs them twice, until it is enough.
        example: the size (N, C, D, H, W) of an input, an input, a tuple of inputs or a dict of keyword arguments. The
            network is run on it without data (on the meta device), to measure; a budget needs it.
        report: return ``(model, Report)``.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: a budget without an example, or one that cannot be met; nothing has been changed then.

    Not in effect while ``torch.compile`` traces, whose partitioner decides by itself what to make again. Freeze norms
    before, or call this once more.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if budget is not None and example is None:
        raise ValueError("budget: needs an example, the size of an input, to see what the network stores")
    done = Report()
    twice: list[str] = []
    if example is not None:
        survey = blocks.survey(model, example, _attach)
        twice, done.after = blocks.choose(survey, budget)
        done.before = sum(survey.plain.values())
    _attach(model)
    for path, module in model.named_modules():
        _note(done, path, module)
    for path in twice:
        module = model.get_submodule(path)
        blocks.run_twice(module)
        done.changes.append(Change(path, type(module).__name__, "runs twice"))
    return (model, done) if report else model


def _attach(model: nn.Module) -> None:
    """The hooks; those that are there already are left alone."""
    for module in model.modules():
        if _needs_note(module) and note_norm not in module._forward_hooks.values():
            module.register_forward_hook(note_norm)
        if _is_rectifier(module):
            module.forward = Rectifier(module)
        if isinstance(module, (*_CONVOLUTIONS, *_POOLINGS)) and _offer not in module._forward_hooks.values():
            module.register_forward_hook(_offer)
    if _begin not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_begin)
        model.register_forward_hook(_end, always_call=True)


def _is_rectifier(module: nn.Module) -> bool:
    """Whether the module's code is PyTorch's, which converted ones wrap."""
    forward = inspect.unwrap(type(module).forward)
    return forward in (nn.ReLU.forward, nn.LeakyReLU.forward) and "forward" not in vars(module)


def _needs_note(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return True
    bias = getattr(module, "bias", None)
    return isinstance(module, _NORMS[:2]) and (bias is None or not bias.requires_grad)


def _begin(module: nn.Module, inputs: tuple) -> None:
    if not torch.compiler.is_compiling():
        begun = _begun()
        # Forward hooks are called after an Exception, not after a KeyboardInterrupt: that forward pass is over, too.
        while begun and not _is_running(begun[-1][1]):
            begun.pop()[2].__exit__(None, None, None)
        context = recomputing()
        context.__enter__()
        begun.append((module, sys._getframe(1), context))


def _end(module: nn.Module, inputs: tuple, output: Any) -> None:
    if torch.compiler.is_compiling():
        return
    begun = _begun()
    if begun and begun[-1][0] is module:  # not if a hook before _begin has raised
        begun.pop()[2].__exit__(None, None, None)


def _begun() -> list[tuple[nn.Module, FrameType, recomputing]]:
    """The forward passes under way in this thread: the network, the frame that calls it, the context."""
    if not hasattr(_local, "begun"):
        _local.begun = []
    return _local.begun


def _is_running(frame: FrameType) -> bool:
    running = sys._getframe()
    while running is not None and running is not frame:
        running = running.f_back
    return running is not None


def _offer(module: nn.Module, inputs: tuple, output: Any) -> None:
    offer(output)


def _note(done: Report, path: str, module: nn.Module) -> None:
    row = path, type(module).__name__
    if isinstance(module, nn.SyncBatchNorm):
        done.stored.append(Change(*row, "stored where it synchronises"))
    elif isinstance(module, (*_NORMS, *_ACTIVATIONS)):
        done.changes.append(Change(*row, "made again"))
    elif isinstance(module, nn.modules.dropout._DropoutNd):
        done.changes.append(Change(*row, "made again, from the mask that was drawn"))
    elif not list(module.children()) and type(module).__module__.startswith("torch.nn.modules.activation"):
        done.stored.append(Change(*row, "stored: no rule for it"))
