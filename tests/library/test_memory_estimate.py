"""What a training step needs, said without running it: against the measured peak, and against what can be counted."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from acsconv.memory import MemoryEstimate, estimate, largest_cube
from acsconv.memory import __main__ as command
from acsconv.memory.estimate import format_bytes, parse_bytes
from acsconv.memory.tracker import LOSS
from acsconv.models import ACSUNet
from acsconv.operators import ACSConv
from torch import nn
from torch.utils.checkpoint import checkpoint

import acsconv_cuda

BENCHMARKS = Path(acsconv_cuda.__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("PoC U-Net", ""),
        ("FCN ResNet-18", ""),  # skip connections; 1x1 layers, computed by oneDNN, are its peak
        ("nnU-Net-like", ", memory-efficient"),
    ],
)
def test_within_a_tenth_of_the_measured_peak(name, variant):
    """The measure is a process's resident memory, which knows nothing of tensors."""
    if not acsconv_cuda.is_available("cpu"):
        pytest.skip(acsconv_cuda.why_unavailable("cpu"))
    suite = pytest.importorskip("memory_suite", reason="the benchmarks are not there")
    implementation = f"acsconv-cuda cpu{variant}"
    network = suite.NETWORKS[name]
    found = estimate(suite.build(network, implementation), network.first)
    measurements = []
    arguments = [name, implementation, "--edges", str(network.first), "--steps", "1", "--threads", "2"]
    assert suite.run_child(arguments, measurements.append) is None
    measured = measurements[0]["memory"]["bytes"]
    if measured is None:
        pytest.skip("resident memory cannot be measured here")
    assert found.peak == pytest.approx(measured, rel=0.1)


@pytest.fixture(autouse=True)
def benchmarks_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


class Chain(nn.Module):
    """Two convolutions, each of 8 channels, with a ReLU behind each."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.first, self.second = ACSConv(2, 8, 3, padding=1), ACSConv(8, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace)

    def forward(self, x):
        return self.relu(self.second(self.relu(self.first(x)))).mean((2, 3, 4))


@pytest.mark.parametrize("inplace", [False, True])
def test_every_byte_of_a_small_network(inplace):
    found = estimate(Chain(inplace), (8, 16, 16), batch=3, optimizer="adam", loss=lambda out: out.mean())
    map_bytes = 3 * 8 * 8 * 16 * 16 * 4
    weights = 4 * (8 * 2 * 9 + 8 + 8 * 8 * 9 + 8)
    assert (found.parameters, found.gradients, found.optimizer_state) == (weights, weights, 2 * weights)
    assert found.inputs == 3 * 2 * 8 * 16 * 16 * 4
    # A convolution's output is needed by no one else: ReLU keeps its own output, the same storage if in place.
    maps = {name: count for name, count in found.layers if count >= map_bytes}
    assert maps == ({"first": map_bytes, "second": map_bytes} if inplace else {"relu": 2 * map_bytes})
    assert found.activations - 2 * map_bytes < 200  # the means, and the loss
    assert dict(found.layers)[LOSS] == 4
    # Both maps, the gradient of the last, spread from its mean, and that of what is before the ReLU.
    above = found.peak - 3 * weights - found.inputs
    assert 4 * map_bytes <= above <= 4 * map_bytes + found.workspace + weights + 600
    assert found.phase == "backward"


def test_it_grows_with_batch_and_volume_and_allocates_nothing():
    network = ACSUNet(4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    small, double, huge = (estimate(network, size, batch=n) for size, n in ((32, 1), (32, 2), (1024, 1)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200e3  # kB
    assert double.activations == pytest.approx(2 * small.activations, rel=1e-3)
    assert huge.activations == pytest.approx(32**3 * small.activations, rel=1e-2)
    assert huge.peak > 1e12
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert all(p.device.type == "cpu" and p.grad is None for p in network.parameters())


def test_sixteen_bits_halve_the_activations():
    single, mixed = (estimate(Chain(True), 16, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    cast = 2 * 2 * 16**3  # the volume itself, in 16 bits
    assert mixed.activations == pytest.approx(single.activations / 2 + cast, rel=0.01)
    assert mixed.parameters == single.parameters


def test_a_checkpointed_block_keeps_its_input_alone():
    class Checkpointed(Chain):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    plain, checkpointed = (estimate(kind(False), 16) for kind in (Chain, Checkpointed))
    assert checkpointed.activations < 0.1 * plain.activations
    assert checkpointed.phase == "backward"


def test_gradients_that_meet_are_added_in_place():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = ACSConv(8, 8, 3, padding=1)
            self.left, self.right = ACSConv(8, 8, 3, padding=1), ACSConv(8, 8, 3, padding=1)

        def forward(self, x):
            x = self.first(x)
            return self.left(x).mean() + self.right(x).mean()

    found = estimate(Residual(), 16, optimizer="none", loss=lambda out: out)
    map_bytes = 8 * 16**3 * 4
    # The input; the first output; its gradient of one branch; the gradients in and out of the other.
    above = found.peak - found.inputs - found.parameters - found.workspace
    assert 3.7 * map_bytes <= above < 4.5 * map_bytes


def test_wide_layers_and_small_volumes_peak_in_the_optimizer():
    network = nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(), nn.Linear(2, 4000), nn.Linear(4000, 2000))
    found = estimate(network, 2)
    assert (found.phase, found.layer) == ("optimizer", "")
    assert found.peak == pytest.approx(
        6 * 4 * 4000 * 2000, rel=0.01
    )  # weights, gradients, 2 moments, 2 at work
    assert estimate(network, 2, device="cuda").peak == pytest.approx(5 * 4 * 4000 * 2000, rel=0.01)


def test_the_largest_cube():
    network, limit = ACSUNet(4), 10**9
    found = largest_cube(network, limit, multiple=8)
    edge = found.size[0]
    assert edge % 8 == 0
    assert found.peak <= limit < estimate(network, edge + 8).peak
    assert largest_cube(network, 10**6) is None


class Halved(nn.Module):
    """Halves a volume and sets it beside itself, as a level of a U-Net: takes even edges alone."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv3d(1, 4, 3, 2, 1), nn.InstanceNorm3d(4)
        self.up, self.last = nn.Upsample(scale_factor=2), nn.Conv3d(5, 1, 1)

    def forward(self, x):
        return self.last(torch.cat([self.up(self.norm(self.down(x))), x], 1))


def test_the_largest_cube_that_the_network_takes():
    network = Halved()  # refuses 1, 3, 5, ..., and 2: a norm of one voxel
    sizes = {edge: estimate(network, edge).peak for edge in (4, 6, 8, 10, 12)}
    for edge, limit in sizes.items():
        assert largest_cube(network, limit, multiple=1).size == (edge,) * 3
    assert largest_cube(network, sizes[8] - 1, multiple=3).size == (6, 6, 6)
    assert largest_cube(network, sizes[4] - 1, multiple=1) is None
    with pytest.raises(ValueError, match=r"refuses volumes \[1, 3, 64, 64, 64\]"):
        largest_cube(network, 10**9, multiple=64, channels=3)
    with pytest.raises(ValueError, match="optimizer: "):
        largest_cube(network, 10**9, optimizer="lbfgs")
    with pytest.raises(ValueError, match="multiple: "):
        largest_cube(network, 10**9, multiple=0)


def test_tensors_outside_of_parameters_and_buffers():
    class Collects(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.maps, self.scale = nn.Conv3d(1, 2, 3), [torch.rand(1)], torch.ones(2, 1, 1, 1)

        def forward(self, x):
            self.maps[0] = self.layer(x) * self.scale
            return self.maps[0]

    network = Collects()
    before = network.maps[0], network.scale
    assert estimate(network, 8).activations > 2 * 6**3 * 4
    assert (network.maps[0], network.scale) == before
    assert estimate(network.to("meta"), 8) == estimate(Collects(), 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size: "),
        ({"size": (4, 4)}, "size: "),
        ({"batch": 0}, "batch: "),
        ({"optimizer": "lbfgs"}, "optimizer: "),
        ({"device": "tpu"}, "device: "),
        ({"dtype": torch.int8}, "dtype: "),
        ({"model": nn.ReLU()}, "channels: "),
        ({"size": 6}, "divisible by 4"),
        (
            {"model": Halved(), "size": 31},
            r"refuses volumes \[1, 1, 31, 31, 31\]: Sizes of tensors must match",
        ),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        estimate(**{"model": ACSUNet(2), "size": 8, **options})


@pytest.mark.parametrize(
    ("text", "count"), [("16GB", 16 * 10**9), ("1.5 GiB", 3 << 29), ("800", 800), ("3mb", 3_000_000)]
)
def test_numbers_of_bytes(text, count):
    assert parse_bytes(text) == count


def test_not_a_number_of_bytes():
    for text in ("", "GB", "16 parsecs", "a16GB"):
        with pytest.raises(ValueError, match="a number of bytes"):
            parse_bytes(text)
    assert [format_bytes(n) for n in (999, 1000, 2.5e9, 999.9e9)] == ["999 B", "1 kB", "2.5 GB", "1 TB"]


def test_command(capsys):
    assert command.main(["ACSUNet(num_classes=4)", "--size", "16", "--batch", "2"]) == 0
    text = capsys.readouterr().out
    for words in ("batch 2, 16 x 16 x 16", "parameters", "1.56 MB", "enc1.encode.0", "peak ("):
        assert words in text
    assert str(estimate(ACSUNet(num_classes=4), 16, batch=2)) == text.rstrip("\n")
    efficient = ["ACSUNet(4)", "--size", "16", "8", "8", "--memory-efficient", "--optimizer", "sgd"]
    assert command.main(efficient) == 0
    assert "batch 1, 16 x 8 x 8" in capsys.readouterr().out
    assert command.main(["acsconv.models.resnet:resnet10", "--fits", "500MB", "--dtype", "bfloat16"]) == 0
    assert "largest cube in 500 MB, in steps of 16: " in capsys.readouterr().out
    assert command.main(["resnet10", "--fits", "1MB"]) == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["ACSUNet(4)"], "one of --size and --fits"),
        (["ACSUNet(4)", "--size", "8", "8"], "one edge, or D H W"),
        (["ACSNet(4)", "--size", "8"], "no network 'ACSNet'"),
        (["ACSUNet(n)", "--size", "8"], "a call with literals"),
        (["no_such_module:build", "--size", "8"], "no_such_module"),
        (["acsconv.models:resnet", "--size", "8"], "not callable"),
        (["ACSUNet()", "--size", "8"], "num_classes"),
        (["ACSUNet(4)", "--fits", "much"], "a number of bytes"),
        (["ACSUNet(4)", "--size", "6"], "divisible by 4"),
        (["ACSUNet(4)", "--size", "8", "--channels", "2"], "refuses volumes [1, 2, 8, 8, 8]"),
        (["ACSUNet(4)", "--fits", "1GB", "--multiple", "0"], "multiple: "),
    ],
)
def test_bad_commands(capsys, arguments, text):
    try:
        code = command.main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert text in capsys.readouterr().err


def test_the_module_runs():
    done = subprocess.run(
        [sys.executable, "-m", "acsconv.memory", "ACSUNet(4)", "--size", "8"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(BENCHMARKS.parent), str(BENCHMARKS.parent / "python")]),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "training step, batch 1, 8 x 8 x 8 voxels" in done.stdout


def test_the_table_is_a_summary():
    layers = tuple((f"layer{index}", 10**6 + index) for index in range(20)) + (("tiny", 1),)
    total = sum(count for _, count in layers)
    found = MemoryEstimate((8, 8, 8), 1, 0, 0, 0, 0, 0, total, layers, 0, total, "forward", "layer3")
    lines = found.lines(most=5)
    assert [line.split()[0] for line in lines if "layer1" in line] == [f"layer{n}" for n in range(15, 20)]
    assert any("other layers" in line and "15 MB" in line for line in lines)
