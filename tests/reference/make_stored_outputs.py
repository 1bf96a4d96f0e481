"""Writes stored_outputs.pt: what the real acsconv 0.1.1 computes, and layers that it pickled.

    PYTHONPATH=.peers/acsconv-0.1.1:tests:. python tests/reference/make_stored_outputs.py

``make peers`` puts the old package into .peers. Only parameters with which 0.1.1 is consistent with itself are stored;
where it is not, see test_differences.py.
"""

from __future__ import annotations

import io
from pathlib import Path

import acsconv
import torch
from acsconv.models.acsunet import ACSUNet
from acsconv.operators import ACSConv, Conv2_5d, SoftACSConv
from numerics import fill, wave

# (class, arguments, input shape)
LAYERS = [
    (ACSConv, {"in_channels": 3, "out_channels": 7, "kernel_size": 3, "padding": 1}, (2, 3, 4, 5, 6)),
    (
        ACSConv,
        {"in_channels": 3, "out_channels": 8, "kernel_size": 3, "padding": 1, "bias": False},
        (1, 3, 5, 6, 4),
    ),
    (
        ACSConv,
        {"in_channels": 2, "out_channels": 6, "kernel_size": 3, "padding": 1, "stride": 2},
        (1, 2, 6, 8, 4),
    ),
    (ACSConv, {"in_channels": 2, "out_channels": 6, "kernel_size": 5, "padding": 2}, (1, 2, 5, 6, 7)),
    (
        ACSConv,
        {"in_channels": 3, "out_channels": 4, "kernel_size": 7, "padding": 3, "stride": 2},
        (1, 3, 8, 10, 8),
    ),
    (ACSConv, {"in_channels": 2, "out_channels": 6, "kernel_size": 3}, (1, 2, 7, 6, 8)),
    (
        ACSConv,
        {"in_channels": 2, "out_channels": 6, "kernel_size": 3, "padding": 2, "dilation": 2},
        (1, 2, 5, 6, 7),
    ),
    (ACSConv, {"in_channels": 2, "out_channels": 6, "kernel_size": 3, "padding": (1, 0, 1)}, (1, 2, 5, 7, 6)),
    (ACSConv, {"in_channels": 2, "out_channels": 6, "kernel_size": 1}, (1, 2, 3, 4, 5)),
    (
        ACSConv,
        {"in_channels": 2, "out_channels": 6, "kernel_size": 3, "padding": 1, "acs_kernel_split": (4, 0, 2)},
        (1, 2, 4, 5, 6),
    ),
    (
        ACSConv,
        {"in_channels": 6, "out_channels": 6, "kernel_size": 3, "padding": 1, "groups": 6},
        (1, 6, 4, 5, 6),
    ),
    (SoftACSConv, {"in_channels": 2, "out_channels": 5, "kernel_size": 3, "padding": 1}, (2, 2, 4, 5, 6)),
    (
        SoftACSConv,
        {"in_channels": 2, "out_channels": 5, "kernel_size": 3, "padding": 1, "mean": True},
        (1, 2, 4, 5, 6),
    ),
    (
        SoftACSConv,
        {"in_channels": 2, "out_channels": 4, "kernel_size": 3, "padding": 1, "stride": 2},
        (1, 2, 6, 4, 8),
    ),
    (
        SoftACSConv,
        {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": 1, "groups": 2},
        (1, 4, 4, 5, 6),
    ),
    (SoftACSConv, {"in_channels": 2, "out_channels": 4, "kernel_size": 1}, (1, 2, 3, 4, 5)),
    (Conv2_5d, {"in_channels": 2, "out_channels": 4, "kernel_size": 3, "padding": 1}, (1, 2, 4, 5, 6)),
    (
        Conv2_5d,
        {
            "in_channels": 2,
            "out_channels": 4,
            "kernel_size": 3,
            "stride": 2,
            "padding": 1,
            "unsqueeze_axis": -1,
        },
        (1, 2, 4, 5, 6),
    ),
]


def main() -> None:
    assert acsconv.__version__ == "0.1.1", f"this is not the old package: {acsconv.__file__}"
    layers = [run(kind, arguments, shape) for kind, arguments, shape in LAYERS]

    unet = fill(ACSUNet(3).double())
    with torch.no_grad():
        unet_output = unet.eval()(wave(1, 1, 8, 12, 8))
    pickled = []
    for kind, arguments, _ in LAYERS[:1] + LAYERS[11:13]:
        buffer = io.BytesIO()
        torch.save(fill(kind(**arguments).double()), buffer)
        pickled.append(buffer.getvalue())
    record = {
        "layers": layers,
        "unet": {"keys": list(unet.state_dict()), "repr": repr(unet), "output": unet_output},
        "pickled": pickled,
    }
    torch.save(record, Path(__file__).parent / "stored_outputs.pt")


def run(kind: type, arguments: dict, shape: tuple[int, ...]) -> dict:
    """Output and gradients of one layer."""
    layer = fill(kind(**arguments).double())
    input = wave(*shape, phase=1).requires_grad_()
    output = layer(input)
    output.backward(wave(*output.shape, phase=2))
    return {
        "class": kind.__name__,
        "arguments": arguments,
        "shape": shape,
        "repr": repr(layer),
        "attributes": {name: getattr(layer, name) for name in ATTRIBUTES if hasattr(layer, name)},
        "keys": list(layer.state_dict()),
        "output": output.detach(),
        "grad_input": input.grad,
        "grads": {name: parameter.grad for name, parameter in layer.named_parameters()},
    }


ATTRIBUTES = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "transposed",
    "output_padding",
    "groups",
    "padding_mode",
    "acs_kernel_split",
    "mean",
    "unsqueeze_axis",
)

if __name__ == "__main__":
    main()
