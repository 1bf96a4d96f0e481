"""Writes state_dicts_of_0_1_1.json.gz: the parameters' names and shapes in acsconv 0.1.1's networks, and some outputs.

    PYTHONPATH=.peers/acsconv-0.1.1:tests:. python tests/library/make_state_dicts.py

``make peers`` puts the old package into .peers.
"""

from __future__ import annotations

import gzip
import importlib
import json
import sys
import types
from pathlib import Path

import torch
from numerics import fill, wave

FILE = Path(__file__).with_name("state_dicts_of_0_1_1.json.gz")

#: name -> (module, how the network is built, input shape)
NETWORKS = {
    "FCNResNet": ("resnet", lambda m: m.FCNResNet(False, 2), (1, 3, 8, 8, 8)),
    "ClsResNet": ("resnet", lambda m: m.ClsResNet(False, 2), (1, 3, 8, 8, 8)),
    "ResNet-50": ("resnet", lambda m: m.ResNet(m.Bottleneck, [3, 4, 6, 3]), (1, 3, 8, 8, 8)),
    "FCNDenseNet": ("densenet", lambda m: m.FCNDenseNet(False, 2), (1, 3, 8, 8, 8)),
    "ClsDenseNet": ("densenet", lambda m: m.ClsDenseNet(False, 2), (1, 3, 8, 8, 8)),
    "FCNVGG": ("vgg", lambda m: m.FCNVGG(False, 2), (1, 3, 8, 8, 8)),
    "ClsVGG": ("vgg", lambda m: m.ClsVGG(False, 2), (1, 3, 8, 8, 8)),
    "ConvNeXt": ("convnext", lambda m: m.convnext_tiny(num_classes=2), (1, 3, 32, 32, 32)),
    "ACSUNet": ("acsunet", lambda m: m.ACSUNet(2), (1, 1, 8, 8, 8)),
}


def build(package: str, name: str) -> torch.nn.Module:
    """The network ``name`` of ``package``'s ``models``, in float64 and eval mode."""
    module, make, _ = NETWORKS[name]
    return make(importlib.import_module(f"{package}.models.{module}")).double().eval()


def shapes(network: torch.nn.Module) -> dict[str, str]:
    return {key: "x".join(map(str, value.shape)) for key, value in network.state_dict().items()}


def samples(network: torch.nn.Module, name: str) -> list[float]:
    """Some numbers of each output for made weights and input."""
    with torch.no_grad():
        outputs = fill(network)(wave(*NETWORKS[name][2]))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [value for out in outputs for value in out.flatten()[:: max(1, out.numel() // 16)].tolist()]


def main() -> None:
    if "timm" not in sys.modules:  # which convnext.py asks for two functions that are not used here
        stub = types.ModuleType("timm.models.layers")
        stub.trunc_normal_, stub.DropPath = torch.nn.init.trunc_normal_, torch.nn.Identity
        sys.modules |= {"timm": stub, "timm.models": stub, "timm.models.layers": stub}
    stored = {}
    for name in NETWORKS:
        network = build("acsconv", name)
        stored[name] = {"shapes": shapes(network), "samples": samples(network, name)}
    FILE.write_bytes(gzip.compress(json.dumps(stored).encode(), mtime=0))
    print(f"{FILE.name}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
