"""Every geometry of the table, at toy size, in every implementation against float64; what they are given."""

import importlib
import os
from contextlib import nullcontext
from types import SimpleNamespace

import implementations
import measure
import networks
import peers
import pytest
import torch
from cases import CASES
from harness import FORMATS, error_limit, relative_error

import acsconv_cuda
from acsconv_cuda import _loader
from acsconv_cuda.geometry import resolve
from acsconv_cuda.ops import Arguments

CPU = torch.device("cpu")


def geometries():
    """One toy case per distinct geometry of the table."""
    found = {}
    for case in CASES:
        small = case.small()
        key = (case.kernel_size, case.stride, case.padding, case.dilation, case.kind, case.bias)
        found.setdefault((*key, small.groups, small.split), small)
    return list(found.values())


def peer_or_skip():
    try:
        return peers.load_acsconv()
    except peers.PeerMissing as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("case", geometries(), ids=lambda case: case.name)
@pytest.mark.parametrize("name", [implementations.REFERENCE, implementations.CONV3D, implementations.ACSCONV])
def test_results_and_gradients_against_float64(case, name):
    peer = peer_or_skip() if name == implementations.ACSCONV else None
    found = implementations.available(CPU, peer, ["torch"])
    (implementation,) = [candidate for candidate in found if candidate.name == name]
    data = implementations.draw(case, CPU, torch.float32, "contiguous")
    if name == implementations.ACSCONV and case.groups not in (1, case.in_channels):
        with pytest.raises(AssertionError, match="depthwise"):
            implementations.run_forward(implementation.build(case, data), data)
        return
    oracle = implementations.DENSE_ORACLE if implementation.dense else implementations.ORACLE
    exact = data.to_float64()
    results = implementations.run_training(implementation.build(case, data), data, input_gradient=True)
    expected = implementations.run_training(oracle.build(case, exact), exact, input_gradient=True)
    assert results.keys() == expected.keys()
    assert {"output", "grad_weight", "grad_input"} <= results.keys()
    forward = implementations.run_forward(implementation.build(case, data), data)
    assert torch.equal(forward["output"], results["output"])
    for key, terms in implementations.error_terms(case, implementation).items():
        if key in results:
            assert relative_error(results[key], expected[key]) <= error_limit(FORMATS["float32"], terms), key


def test_implementations_are_ours_first_then_the_peers():
    names = [found.name for found in implementations.available(CPU, object(), ["cpu", "torch"])]
    assert names == ["acsconv-cuda cpu", "reference", "nn.Conv3d", "acsconv 0.1.1"]
    on_gpu = implementations.available(torch.device("cuda"), object(), ["cuda", "torch"])
    assert on_gpu[-1].name == "torch.compile(acsconv 0.1.1)"
    assert implementations.available(CPU, None, ["torch"])[-1].name == "nn.Conv3d"


def test_a_fused_backend_is_never_another_by_its_name():
    """Only what ``auto`` leaves to PyTorch on purpose is left to it."""
    implementation = implementations.available(CPU, None, ["cuda"])[0]
    for kernel_size in (3, 1):
        case = next(case.small() for case in CASES if case.kernel_size == kernel_size)
        data = implementations.draw(case, CPU, torch.float32, "contiguous")
        refused = pytest.raises(RuntimeError, match="the input is on cpu")
        with refused if kernel_size == 3 else nullcontext():
            implementations.run_forward(implementation.build(case, data), data)


def test_a_fallback_is_a_failed_row(monkeypatch):
    backends = importlib.import_module("acsconv_cuda.backends")
    monkeypatch.setattr(_loader, "why_no_cuda", lambda device=None: "no kernel")
    monkeypatch.setattr(backends, "_warned", set())
    tensor = SimpleNamespace(
        device=torch.device("cuda", 0), is_cpu=False, dtype=torch.float32, shape=(1, 4, 8, 8, 8)
    )
    arguments = Arguments((2, 1, 1), resolve((3, 3), 1, 1, 1), 1, "auto")
    candidate = measure.Candidate("ours", lambda: backends.choose("forward", tensor, arguments), dict, {})
    for _ in range(2):
        verdict = measure._check(candidate, {})
        assert verdict["status"] == "failed"
        assert "computes with plain PyTorch: no kernel" in verdict["reason"]


@pytest.mark.parametrize("layout", implementations.LAYOUTS)
def test_data_have_the_layout_and_dtype_asked_for(layout):
    (case,) = (case.small() for case in CASES if case.name == "smoke-narrow")  # one channel has both layouts
    data = implementations.draw(case, CPU, torch.bfloat16, layout)
    for tensor in (data.x, data.grad_output, data.dense_weight):
        assert tensor.dtype == torch.bfloat16
        assert tensor.is_contiguous(memory_format=implementations.LAYOUTS[layout])
    exact = data.to_float64()
    assert torch.equal(exact.x, data.x.double())
    assert exact.view_logits is None
    again = implementations.draw(case, CPU, torch.bfloat16, layout)
    assert torch.equal(again.x, data.x)


@pytest.mark.parametrize("wanted", [False, True])
def test_no_gradient_of_an_image_is_asked_for(wanted):
    data = implementations.draw(CASES[0].small(), CPU, torch.float32, "contiguous")
    layer, seen = implementations.ORACLE.build(CASES[0].small(), data), []

    def call(x):
        seen.append(x.requires_grad)
        return layer.call(x)

    results = implementations.run_training(implementations.Layer(call, layer.parameters), data, wanted)
    assert seen == [wanted]
    assert ("grad_input" in results) == wanted


def test_a_backend_is_forced_and_let_go(monkeypatch):
    x, weight = torch.zeros(1, 1, 3, 3, 3), torch.zeros(3, 1, 3, 3)
    monkeypatch.setenv("ACSCONV_BACKEND", "torch")
    with pytest.raises(ValueError, match="no such backend"), networks.forced_backend("no such backend"):
        acsconv_cuda.acs_conv3d(x, weight, padding=1)
    assert os.environ["ACSCONV_BACKEND"] == "torch"
    monkeypatch.delenv("ACSCONV_BACKEND")
    with networks.forced_backend("torch"):
        assert os.environ["ACSCONV_BACKEND"] == "torch"
    assert "ACSCONV_BACKEND" not in os.environ


def test_the_three_networks():
    peer = peer_or_skip()
    built = networks.build_acsunet(peer, ["torch"], [])
    network, twin = built[implementations.REFERENCE][0], built[implementations.ACSCONV][0]
    assert list(network.state_dict()) == list(twin.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), twin.parameters(), strict=True))
    dense = built[implementations.CONV3D][0]
    kinds = {type(module).__name__ for module in dense.modules()}
    assert "ACSConv" not in kinds
    shapes = [tuple(m.weight.shape) for m in dense.modules() if isinstance(m, torch.nn.Conv3d)]
    assert len(shapes) == 7
    assert shapes[1] == (64, 64, 3, 3, 3)
