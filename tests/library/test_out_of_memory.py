"""Out of memory in any pass: an error that names the layer and the way out, and a process that goes on."""

import contextlib
import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from acsconv.operators import ACSConv, SoftACSConv
from torch import nn

import acsconv_cuda
from acsconv_cuda import out_of_memory

ROOT = Path(acsconv_cuda.__file__).resolve().parents[1]

# More than the 2**47 bytes that a process can address: no setting of the system grants them.
ENDLESS = torch.zeros(1).expand(1, 1, 1 << 14, 1 << 14, 1 << 14)


def test_the_forward_pass_names_layer_and_switch(backend, device):
    network = nn.Sequential(nn.Sequential(ACSConv(1, 64, 3, padding=1), nn.ReLU())).to(device)
    with pytest.raises(RuntimeError, match="out of memory in the forward pass") as caught:
        acsconv_cuda.acs_conv3d(ENDLESS.to(device), network[0][0].weight, padding=1, backend=backend)
    text = str(caught.value)
    for words in ("layer '0.0'", "weight [64, 1, 3, 3]", "memory_efficient=True", "python -m acsconv.memory"):
        assert words in text
    assert device == "cuda" or "you tried to allocate" in text  # PyTorch's own words
    assert isinstance(caught.value, torch.OutOfMemoryError) == (device == "cuda")


def test_without_a_layer_the_shapes_are_named():
    weight = torch.zeros(64, 1, 3, 3)
    with pytest.raises(RuntimeError, match=r"\(input \[1, 1, 16384, 16384, 16384\], weight \[64, 1, 3, 3\]"):
        acsconv_cuda.acs_conv3d(ENDLESS, weight, padding=1)


CHILD = """
import gc, json, resource, sys
import torch
from torch import nn
from acsconv.operators import ACSConv, SoftACSConv

MIB = 2**20

def data():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmData")) * 1024

def limit(*_):
    resource.setrlimit(resource.RLIMIT_DATA, (data() + 2 * MIB, resource.RLIM_INFINITY))

def unlimit():
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

def attempt(network, volume, where):
    try:
        if where == "forward":
            limit()
        out = network(volume)
        if where == "backward":
            out.register_hook(limit)
        out.sum().backward()
    except Exception as error:
        return [type(error).__name__, str(error)]
    finally:
        unlimit()
        network.zero_grad()
    return None

found = {}
torch.set_num_threads(1)
for kind, layer in (("acs", ACSConv), ("soft", SoftACSConv)):
    wide = nn.ModuleDict({"stage": nn.Sequential(nn.Identity(), layer(16, 48, 3, padding=1))})
    wide.forward = wide["stage"].forward
    deep = nn.ModuleDict({"stage": nn.Sequential(nn.Identity(), layer(640, 640, 3, padding=1))})
    deep.forward = deep["stage"].forward
    volume, small = torch.rand(1, 16, 48, 48, 48), torch.rand(1, 640, 4, 4, 4)  # 7 MiB; 0.2 MiB
    for name, network, x, where in (
        ("forward", wide, volume, "forward"),
        ("input", wide, volume.clone().requires_grad_(), "backward"),
        ("weight", deep, small, "backward"),  # 14 MiB of gradients
    ):
        assert attempt(network, x, None) is None
        x.grad = None
        gc.collect()
        before, errors = data(), []
        for _ in range(4):
            errors.append(attempt(network, x, where))
        gc.collect()
        found[f"{kind} {name}"] = {"errors": errors, "grown": data() - before, "then": attempt(network, x, None)}
        x.grad = None
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_every_pass_leaves_a_usable_process(backend, device):
    if device != "cpu":
        pytest.skip("the limit is one of the process; a GPU's memory is not under it")
    # Every larger block is mapped by itself and given back when it is freed, so that a leak shows.
    environment = {
        **os.environ,
        "ACSCONV_BACKEND": backend,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "python")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    passes = {
        "forward": "in the forward pass",
        "input": "in the gradient of the input",
        "weight": "in the gradient of the weight",
    }
    if backend == "torch":
        passes["input"] = "in the gradient of the"  # weight's, which comes first: PyTorch copies volumes
    for case, result in json.loads(done.stdout).items():
        for error in result["errors"]:
            assert error is not None, f"{case}: was not out of memory"
            kind, text = error
            assert kind == "RuntimeError"
            assert passes[case.split()[1]] in text
            assert "layer 'stage.1'" in text
            assert out_of_memory.ADVICE in text
        assert result["grown"] < 3 * 2**20, case
        assert result["then"] is None, case


def test_other_errors_stay_as_they_are(monkeypatch):
    def fails(*args):
        raise RuntimeError(failure)

    def refuses(*args):
        raise RuntimeError("an error of the device")

    tensors = torch.zeros(1, 1, 3, 3, 3), torch.zeros(3, 1, 3, 3)
    failure = "something else"
    with pytest.raises(RuntimeError, match=r"^something else$"):
        out_of_memory.explained("forward", fails, torch.add)(*tensors)
    failure = "aten::empty API call failed"
    with pytest.raises(RuntimeError, match=r"^an error of the device$"):
        out_of_memory.explained("forward", fails, refuses)(*tensors)
    with pytest.raises(RuntimeError, match=r"out of memory in the forward pass .* the kernels' own needs"):
        out_of_memory.explained("forward", fails, lambda *_: None)(*tensors)


@pytest.mark.parametrize("text", ["out of memory", "something else", "aten::empty API call failed"])
def test_a_handled_error_keeps_no_tensor(text):
    """Nor does it wait for a collection, which may come too late for the next attempt."""

    def fails(*args):
        raise RuntimeError(text)

    def refuses(*args):
        raise RuntimeError("an error of the device")

    tensors = [torch.zeros(1, 1, 3, 3, 3), torch.zeros(3, 1, 3, 3)]
    alive = [weakref.ref(tensor) for tensor in tensors]
    gc.disable()
    try:
        with contextlib.suppress(RuntimeError):
            out_of_memory.explained("forward", fails, refuses)(*tensors)
        del tensors
        assert [reference() for reference in alive] == [None, None]
    finally:
        gc.enable()


def test_a_module_that_could_not_be_made_is_no_obstacle():
    kept = []

    class HalfBuilt(nn.Module):
        def __init__(self):
            kept.append(self)
            raise ValueError("before nn.Module's own")

    with pytest.raises(ValueError, match="before"):
        HalfBuilt()
    network = nn.Sequential(ACSConv(1, 64, 3, padding=1))
    with pytest.raises(RuntimeError, match=r"out of memory .*layer '0'"):
        network(ENDLESS)


def test_a_layer_is_found_by_what_it_computes_with():
    soft = nn.Sequential(nn.Sequential(SoftACSConv(1, 3, 3)), ACSConv(3, 3, 3))
    assert out_of_memory.layer_name(soft[1].weight) == "1"
    assert out_of_memory.layer_name((soft[0][0].weight * 2).to(torch.bfloat16)) == "0.0"
    assert out_of_memory.layer_name(torch.zeros(3, 1, 3, 3)) is None
    assert out_of_memory.layer_name(ACSConv(3, 3, 3).weight) is None  # not in a network
