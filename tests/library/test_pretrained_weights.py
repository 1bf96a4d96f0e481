"""Our own trained weights: what is published loads without a network, and what is damaged does not load at all."""

import json
import re
import socket
import sys

import pytest
import torch
from acsconv import weights
from acsconv.models import ACSUNet
from acsconv.weights import safetensors

STATE = {
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "transposed": torch.arange(6.0).view(2, 3).t(),
    "half": torch.tensor([[1.5, -2.0]], dtype=torch.float16),
    "brain": torch.tensor([0.1, float("inf")], dtype=torch.bfloat16),
    "flags": torch.tensor([True, False, True]),
    "double": torch.tensor([1e-300], dtype=torch.float64),
}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


# --- the format -------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read():
    content = safetensors.write(STATE, {"name": "Grüße"})
    same(safetensors.parse(content), STATE)
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0  # who maps the file finds aligned tensors
    header = json.loads(content[8 : 8 + length])
    for name, value in STATE.items():
        assert header[name]["data_offsets"][0] % value.dtype.itemsize == 0
    same(safetensors.parse(safetensors.write({}, {})), {})
    with pytest.raises(ValueError, match="x: expected one of F64"):
        safetensors.write({"x": torch.zeros(2, dtype=torch.complex64)}, {})


def test_the_format_is_that_of_the_package_safetensors():
    package = pytest.importorskip(
        "safetensors.torch", reason="safetensors is not installed: no peer to compare with"
    )
    same(package.load(safetensors.write(STATE, {"name": "ours"})), STATE)
    theirs = package.save({name: value.contiguous() for name, value in STATE.items()}, {"name": "theirs"})
    same(safetensors.parse(theirs), STATE)


def file_with(header: object, data: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_a_file_made_by_hand():
    data = b"\x00\x00\x80\x3f\x00\x00\x00\x40\x03"
    header = {"y": tensor("U8", [], [8, 9]), "x": tensor()}  # in any order
    expected = {"y": torch.tensor(3, dtype=torch.uint8), "x": torch.tensor([1.0, 2.0])}
    same(safetensors.parse(file_with(header, data)), expected)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 100,
        file_with(b"{"),
        file_with(b"\xff\xfe"),
        file_with([1, 2]),
        file_with({"x": 3}),
        file_with({"x": {"dtype": "F32", "shape": [2]}}),
        file_with({"x": tensor("F31")}),
        file_with({"x": tensor(shape=[3])}),
        file_with({"x": tensor(shape=[-1, -2])}),
        file_with({"x": tensor(offsets=[0, 8])}, bytes(7)),
        file_with({"x": tensor(offsets=[0, 8])}, bytes(9)),
        file_with({"x": tensor(offsets=[4, 12])}, bytes(12)),
        file_with({"x": tensor(), "y": tensor()}),
        file_with({"x": tensor(shape=["2"])}),
        file_with({"x": tensor(offsets=["0", "8"])}),
    ],
)
def test_damaged_files(content):
    with pytest.raises(ValueError, match="safetensors file"):
        safetensors.parse(content)


# --- what is published ------------------------------------------------------------------------------------------------


@pytest.fixture
def _alone(monkeypatch):
    """Neither a network nor the package safetensors."""
    for name in [name for name in sys.modules if name.split(".")[0] == "safetensors"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setattr(socket, "socket", None)


@pytest.mark.parametrize("name", weights.entries())
@pytest.mark.usefixtures("_alone")
def test_every_published_file(name):
    entry = weights.entries()[name]
    assert (weights.FOLDER / entry["file"]).stat().st_size < 3_000_000
    state = weights.load(name)
    assert state["final.weight"].shape[0] == len(entry["classes"])
    same(state, {key: value for key, value in state.items() if torch.isfinite(value).all()})
    network = ACSUNet(len(entry["classes"]), pretrained=name)
    loaded = network.state_dict()
    body = {key: value for key, value in state.items() if not key.startswith("final.")}
    same({key: loaded[key] for key in body}, body)
    assert torch.equal(loaded["final.weight"], state["final.weight"]) == (not name.endswith("-2d"))


def test_there_are_the_two_of_the_proof_of_concept():
    assert {"poc", "poc-2d"} <= set(weights.entries())


def test_other_classes():
    with pytest.raises(ValueError, match=r"'poc' has 6 classes \(background, cone, .*\), num_classes is 2"):
        ACSUNet(2, pretrained="poc")
    torch.manual_seed(0)
    network = ACSUNet(2, pretrained="poc-2d")
    torch.manual_seed(0)
    assert torch.equal(network.final.weight, ACSUNet(2).final.weight)


def test_other_sources(tmp_path):
    torch.manual_seed(1)
    other = ACSUNet(3)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    for source in (str(tmp_path / "other.pt"), tmp_path / "other.pt", other.state_dict()):
        same(ACSUNet(3, pretrained=source).state_dict(), other.state_dict())
    for unknown in ("pox", tmp_path / "nowhere.pt", True):
        message = rf"pretrained: expected one of 'poc.*, or a file, got {re.escape(repr(unknown))}"
        with pytest.raises(ValueError, match=message):
            ACSUNet(6, pretrained=unknown)
    for content in (b"", b"PK\x03\x04", b"words"):
        (tmp_path / "other.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"pretrained: .*other\.pt is damaged or no checkpoint \(.+\)"):
            ACSUNet(3, pretrained=tmp_path / "other.pt")


def test_damage_is_found(monkeypatch, tmp_path):
    entry = weights.entries()["poc-2d"]
    content = bytearray((weights.FOLDER / entry["file"]).read_bytes())
    (tmp_path / "index.json").write_text(json.dumps({"poc-2d": entry}))
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="'poc-2d', is missing"):
        ACSUNet(3, pretrained="poc-2d")
    content[-5] ^= 1
    (tmp_path / entry["file"]).write_bytes(content)
    with pytest.raises(ValueError, match="'poc-2d', is damaged"):
        ACSUNet(3, pretrained="poc-2d")
    content[-5] ^= 1
    (tmp_path / entry["file"]).write_bytes(content)
    ACSUNet(3, pretrained="poc-2d")
