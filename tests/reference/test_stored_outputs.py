"""Our layers against what the real acsconv 0.1.1 computed (make_stored_outputs.py): outputs, gradients, checkpoints."""

import io
import re
from pathlib import Path

import acsconv.operators
import pytest
import torch
from acsconv.models.acsunet import ACSUNet
from numerics import fill, wave

STORED = torch.load(Path(__file__).parent / "stored_outputs.pt", weights_only=True)


def _id(record) -> str:
    return f"{record['class']}-" + "-".join(f"{k[:6]}{v}" for k, v in record["arguments"].items()).replace(
        " ", ""
    )


@pytest.mark.parametrize("record", STORED["layers"], ids=_id)
def test_layer(record):
    layer = fill(getattr(acsconv.operators, record["class"])(**record["arguments"]).double())
    assert repr(layer) == record["repr"]
    assert list(layer.state_dict()) == record["keys"]
    assert {name: getattr(layer, name) for name in record["attributes"]} == record["attributes"]

    input = wave(*record["shape"], phase=1).requires_grad_()
    output = layer(input)
    output.backward(wave(*output.shape, phase=2))
    torch.testing.assert_close(output, record["output"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(input.grad, record["grad_input"], rtol=1e-12, atol=1e-12)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, record["grads"][name], rtol=1e-12, atol=1e-12)


def _without_batch_norm(text: str) -> str:
    """What PyTorch prints of its own layers differs between its versions."""
    return re.sub(r"BatchNorm3d\(.*\)", "BatchNorm3d()", text)


def test_unet():
    unet = ACSUNet(3).double()
    assert list(unet.state_dict()) == STORED["unet"]["keys"]
    assert _without_batch_norm(repr(unet)) == _without_batch_norm(STORED["unet"]["repr"])
    with torch.no_grad():
        output = fill(unet).eval()(wave(1, 1, 8, 12, 8))
    torch.testing.assert_close(output, STORED["unet"]["output"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("index,class_name", list(enumerate(["ACSConv", "SoftACSConv", "SoftACSConv"])))
def test_pickled_layer(index, class_name):
    """A whole module saved with 0.1.1 becomes one of ours and computes the same."""
    layer = torch.load(io.BytesIO(STORED["pickled"][index]), weights_only=False)
    assert type(layer) is getattr(acsconv.operators, class_name)
    fresh = [r for r in STORED["layers"] if r["class"] == class_name][index if index == 0 else index - 1]
    output = layer(wave(*fresh["shape"], phase=1))
    torch.testing.assert_close(output, fresh["output"], rtol=1e-12, atol=1e-12)
