"""``python -m acsconv.memory MODEL``: what a training step of a network needs in memory, without running it.

    python -m acsconv.memory "ACSUNet(num_classes=4)" --size 96 --batch 2
    python -m acsconv.memory "FCNResNet(False, 2, backbone='resnet34')" --size 64 --optimizer sgd --dtype bfloat16
    python -m acsconv.memory mypackage.networks:build --fits 16GB --memory-efficient

MODEL: a network of ``acsconv.models`` by its name, or ``module:callable``; its arguments, literals, in parentheses.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from collections.abc import Callable, Sequence

import torch
from torch import nn

from acsconv import models

from . import make_memory_efficient
from .estimate import OPTIMIZERS, estimate, format_bytes, largest_cube, parse_bytes

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
}


def build(text: str) -> nn.Module:
    """The network that MODEL means.

    Raises:
        ValueError: no such network, or arguments that are no literals.
    """
    module, colon, call = text.partition(":")
    if not colon:
        call = text
    try:
        node = ast.parse(call.strip(), mode="eval").body
        name = ast.unparse(node.func if isinstance(node, ast.Call) else node)
        positional = [ast.literal_eval(argument) for argument in getattr(node, "args", [])]
        named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in getattr(node, "keywords", [])}
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"MODEL: expected a name, or a call with literals, got {text!r}: {error}") from None
    maker = _named(module, name) if colon else _native(name)
    network = maker if isinstance(maker, nn.Module) else maker(*positional, **named)
    if not isinstance(network, nn.Module):
        raise ValueError(f"MODEL: {text!r} gives a {type(network).__name__}, not a network")
    return network


def _named(module: str, name: str) -> Callable[..., object]:
    found: object = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _native(name: str) -> Callable[..., object]:
    """A network of ``acsconv.models``, or of one of its families."""
    for place in (models, models.resnet, models.densenet, models.vgg, models.convnext):
        found = getattr(place, name, None)
        if callable(found) and getattr(found, "__module__", "").startswith("acsconv.models"):
            return found
    raise ValueError(f"MODEL: acsconv.models has no network {name!r}; others are given as module:callable")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m acsconv.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--size", type=int, nargs="+", metavar="EDGE", help="edge of a cube, or D H W")
    parser.add_argument("--fits", metavar="MEMORY", help="the largest cube that fits, e.g. 16GB or 15.5GiB")
    parser.add_argument("--multiple", type=int, default=16, help="of which --fits tries cubes; default 16")
    parser.add_argument("--batch", type=int, default=1, help="volumes per step; default 1")
    parser.add_argument("--channels", type=int, help="of the volumes; default: as the first layer wants")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adam", help="default adam")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="16 bits: autocast, with float32 parameters"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="whose kernels; default cpu")
    parser.add_argument("--memory-efficient", action="store_true", help="with make_memory_efficient")
    options = parser.parse_args(arguments)
    if (options.size is None) == (options.fits is None):
        parser.error("one of --size and --fits is needed")
    if options.size is not None and len(options.size) not in (1, 3):
        parser.error("--size: one edge, or D H W")
    chosen = {
        "batch": options.batch,
        "channels": options.channels,
        "optimizer": options.optimizer,
        "dtype": DTYPES[options.dtype],
        "device": options.device,
    }
    try:
        network = build(options.model)
        if options.memory_efficient:
            make_memory_efficient(network)
        if options.fits is None:
            size = options.size[0] if len(options.size) == 1 else options.size
            print(estimate(network, size, **chosen))
            return 0
        limit = parse_bytes(options.fits)
        found = largest_cube(network, limit, multiple=options.multiple, **chosen)
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        print(f"python -m acsconv.memory: {error}", file=sys.stderr)
        return 2
    if found is None:
        print(
            f"not even the smallest cube fits into {format_bytes(limit)}, in steps of {options.multiple} voxels"
        )
        return 1
    print(
        f"largest cube in {format_bytes(limit)}, in steps of {options.multiple}: {found.size[0]} voxels\n{found}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
