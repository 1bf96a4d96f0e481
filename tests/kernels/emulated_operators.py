"""Run by test_operators.py: `python emulated_operators.py LIBRARY PART`. Asserts; says nothing if all is well."""

# ruff: noqa: E402 (what is imported, and when, is the point)
from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from pathlib import Path

import torch
from torch.autograd import gradcheck

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT), str(ROOT / "python")]

# Before anything imports acsconv_cuda: its own object would register the same operators for the CPU.
load_library, torch.ops.load_library = torch.ops.load_library, lambda path: None
from acsconv.operators import ACSConv
from numerics import Problem, random_problems

from acsconv_cuda import _loader, acs_conv3d, soft_acs_conv3d
from acsconv_cuda.backends import FUSED_DTYPES, FUSED_PASSES, why_not
from acsconv_cuda.geometry import resolve
from acsconv_cuda.ops import Arguments

load_library(sys.argv[1])
_loader._state = {"failure": None}
FUSED_PASSES["cpu"], FUSED_DTYPES["cpu"] = FUSED_PASSES["cuda"], FUSED_DTYPES["cuda"]


def outputs_and_gradients(function, tensors, backend):
    tensors = [t.detach().requires_grad_() for t in tensors]
    out = function(*tensors, backend=backend)
    grad_output = torch.randint(-4, 5, out.shape, generator=torch.Generator().manual_seed(0)).to(out.dtype)
    return [out, *torch.autograd.grad(out, tensors, grad_output)]


def agree(function, tensors, **tolerances):
    """The fused operators (as "cpu") and the reference give the same values in the same memory format."""
    fused = outputs_and_gradients(function, tensors, "cpu")
    expected = outputs_and_gradients(function, tensors, "torch")
    for one, other in zip(fused, expected, strict=True):
        torch.testing.assert_close(one, other, **({"rtol": 0, "atol": 0} | tolerances))
        assert one.stride() == other.stride() or 1 in one.shape or one.numel() == 0


def options(problem: Problem) -> dict:
    names = ("stride", "padding", "dilation", "groups")
    return {name: getattr(problem, name) for name in names}


def acs() -> None:
    for problem in random_problems(30, seed=5):
        agree(lambda *t, p=problem, **k: acs_conv3d(*t, split=p.split, **options(p), **k), problem.tensors())


def soft() -> None:
    for problem in random_problems(12, seed=6):
        input, weight, bias = problem.tensors()
        view_weights = torch.tensor([[1.0, 2.0, -1.0]], dtype=input.dtype).repeat(problem.out_channels, 1)
        agree(
            lambda *t, p=problem, **k: soft_acs_conv3d(*t, **options(p), **k),
            (input, weight, view_weights, bias),
        )


def dtypes() -> None:
    problem = Problem(5, 7, (3, 3), (4, 5, 6), (3, 2, 2), padding=1)
    for dtype in FUSED_DTYPES["cuda"]:
        # Sums of these integers stay below 2^24, so that only the last rounding to 16 bits is left.
        agree(lambda *t, **k: acs_conv3d(*t, split=problem.split, padding=1, **k), problem.tensors(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert acs_conv3d(*problem.tensors(torch.float32), padding=1, backend="cpu").dtype == torch.bfloat16


def float32_weights() -> None:
    """What autocast leaves: a float32 weight beside 16 bits, packed on tensor cores or rounded for CUDA cores."""
    operators = torch.ops.acsconv
    for channels in (16, 3):  # 3: not on tensor cores
        problem = Problem(channels, 12, (3, 3), (4, 5, 6), (5, 4, 3), padding=1)
        input, weight, bias = problem.tensors(torch.float32)
        input = input.bfloat16()
        geometry = resolve((3, 3), 1, 1, 1)
        tail = (problem.split, geometry.stride, geometry.flat_origin(), geometry.flat_dilation())
        out, rounded = (
            operators.fused_forward(input, weight.to(dtype), bias.to(dtype), *tail, (4, 5, 6), 1)
            for dtype in (torch.float32, torch.bfloat16)
        )
        torch.testing.assert_close(out, rounded, rtol=0, atol=0)
        grad, rounded = (
            operators.fused_backward_input(out, weight.to(dtype), (4, 5, 6), False, *tail, 1)
            for dtype in (torch.float32, torch.bfloat16)
        )
        torch.testing.assert_close(grad, rounded, rtol=0, atol=0)


def tma() -> None:
    """ACSCONV_TMA=1 changes how a volume is loaded; what it cannot load, or the driver refuses to, is copied."""
    os.environ |= {"ACSCONV_FORWARD_WALK": "view", "ACSCONV_PRINT_PLAN": "1", "ACSCONV_TMA": "1"}
    problem = Problem(16, 24, (3, 3), (4, 5, 9), (9, 8, 7), padding=1)
    input, weight, bias = problem.tensors(torch.bfloat16)
    driver_refuses = ctypes.c_bool.in_dll(ctypes.CDLL(sys.argv[1]), "emulator_refuses_tensor_maps")
    channels_last = input.contiguous(memory_format=torch.channels_last_3d)
    for volume, refused, words in (
        (channels_last, False, "loaded by TMA"),
        (channels_last, True, "not by TMA: TMA: the driver refused the tensor map"),
        (input, False, "not by TMA: the channels of a voxel are not neighbours"),
    ):
        driver_refuses.value = refused
        results = []
        with tempfile.TemporaryFile("w+") as said, standard_error_to(said):
            for backend in ("cpu", "torch"):
                source = volume.detach().requires_grad_()
                out = acs_conv3d(source, weight, bias, split=problem.split, padding=1, backend=backend)
                # Gradients below 256, which the views' sums in 16 bits hold exactly.
                results.append([out, *torch.autograd.grad(out, source, out.detach().sign())])
            said.seek(0)
            assert said.read().count(words) == 2
        torch.testing.assert_close(*results, rtol=0, atol=0)


@contextlib.contextmanager
def standard_error_to(file):
    """Also what compiled code writes."""
    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def layouts() -> None:
    problem = Problem(9, 7, (3, 3), (4, 5, 6), (3, 2, 2), padding=1, stride=2)
    input, weight, bias = problem.tensors()
    for view in (
        input.contiguous(memory_format=torch.channels_last_3d),
        input.transpose(2, 4),
        input[:, :, :1].expand(-1, -1, 4, -1, -1),
        torch.cat([input, input], -1)[..., 1:7],
    ):
        agree(lambda *t, **k: acs_conv3d(*t, padding=1, stride=2, **k), (view, weight, bias))
        agree(lambda *t, **k: acs_conv3d(*t, padding=1, stride=2, **k), (view, weight.transpose(2, 3), bias))
    weight.requires_grad_()  # the gradient of a sum has strides of 0
    out = acs_conv3d(input, weight, padding=1, backend="cpu")
    expected = acs_conv3d(input, weight, padding=1, backend="torch")
    torch.testing.assert_close(*(torch.autograd.grad(one.sum(), weight) for one in (out, expected)))


def float32_gradients() -> None:
    """Of 16-bit volumes: on tensor cores the sums as they are, from CUDA cores (dilation) rounded and widened again."""
    operators = torch.ops.acsconv
    input, weight, _ = Problem(16, 12, (3, 3), (4, 5, 6), (5, 4, 3)).tensors(torch.bfloat16)
    for dilation in (1, 2):
        geometry = resolve((3, 3), 1, dilation, dilation)
        tail = ((5, 4, 3), geometry.stride, geometry.flat_origin(), geometry.flat_dilation())
        grad_output = operators.fused_forward(input, weight, None, *tail, (4, 5, 6), 1)
        exact = operators.fused_backward_weight(grad_output.double(), input.double(), (3, 3), True, *tail, 1)
        grads = operators.fused_backward_weight(grad_output, input, (3, 3), True, *tail, 1, False, True)
        for grad, other in zip(grads, exact, strict=True):
            other = other.float() if dilation == 1 else other.bfloat16().float()
            torch.testing.assert_close(grad, other, rtol=0, atol=0)
            assert (other != other.bfloat16()).any() == (dilation == 1)


def tf32() -> None:
    """float32 gradients on tensor cores only where the operator says so: 2^-12 is lost there."""
    input, grad_output = torch.ones(1, 16, 4, 5, 6), torch.full((1, 12, 4, 5, 6), 1 + 2.0**-12)
    geometry = resolve((3, 3), 1, 1, 1)
    tail = ((4, 4, 4), geometry.stride, geometry.flat_origin(), geometry.flat_dilation())
    for allowed, value in ((True, 1), (False, 1 + 2.0**-12)):
        grad, bias = torch.ops.acsconv.fused_backward_weight(
            grad_output, input, (3, 3), True, *tail, 1, allowed
        )
        assert grad[0, 0, 1, 1] == 120 * value
        assert bias[0] == 120 * (1 + 2.0**-12)


def empty() -> None:
    weight = torch.randn(6, 2, 3, 3)
    agree(
        lambda *t, **k: acs_conv3d(*t, padding=1, **k), (torch.randn(0, 2, 4, 5, 6), weight, torch.randn(6))
    )
    agree(
        lambda *t, **k: acs_conv3d(*t, stride=4, padding=3, **k),
        (torch.ones(1, 2, 1, 1, 1), torch.ones(6, 2, 3, 3), torch.ones(6)),
    )


def gradients() -> None:
    input, weight, bias = (
        t / 4 for t in Problem(2, 4, (3, 3), (3, 4, 3), (2, 1, 1), padding=1).tensors(batch=1)
    )
    tensors = [t.requires_grad_() for t in (input, weight, bias)]
    assert gradcheck(lambda *t: acs_conv3d(*t, padding=1, stride=2, backend="cpu"), tensors)
    frozen = [input.detach(), weight, bias.detach()]
    out = acs_conv3d(*frozen, padding=1, backend="cpu")
    torch.autograd.grad(out.square().sum(), weight)


def transforms() -> None:
    """vmap and torch.compile reach the fused kernels as well."""
    input, weight, bias = Problem(2, 7, (3, 3), (4, 5, 6), (3, 2, 2), padding=1).tensors()
    volumes = torch.stack([input, input.flip(2), -input])
    fused = torch.vmap(lambda x: acs_conv3d(x, weight, bias, padding=1, backend="cpu"))(volumes)
    expected = [acs_conv3d(x, weight, bias, padding=1, backend="torch") for x in volumes]
    torch.testing.assert_close(fused, torch.stack(expected), rtol=0, atol=0)
    compiled = torch.compile(acs_conv3d, fullgraph=True, backend="aot_eager")
    agree(lambda *t, backend: compiled(*t, padding=1, backend=backend), (input, weight, bias))


def far_apart() -> None:
    """Elements more than 2^31 from each other. Of the memory between them, nothing is touched."""
    torch.backends.cudnn.allow_tf32 = False  # float32 on CUDA cores, float16 on tensor cores
    elements = 2**31 + 2**28
    layers = [
        Problem(channels, 6, (3, 3), (4, 5, 6), (2, 2, 2), padding=1, groups=groups)
        for channels, groups in ((6, 1), (2, 1), (6, 6))
    ]
    for dtype in (torch.float16, torch.float32):
        try:
            memory = torch.empty(elements, dtype=dtype)
        except RuntimeError:  # Linux does not promise so much more than it has
            print(f"far_apart: left out {dtype}, no {elements * dtype.itemsize >> 30} GiB of addresses")
            continue

        def apart(volume: torch.Tensor, memory: torch.Tensor = memory) -> torch.Tensor:
            """The volume's values, the last channel more than 2^31 elements after the first."""
            step = 2**31 // max(1, volume.shape[1] - 1) + 3
            view = memory.as_strided(volume.shape, (7, step, 2**25 + 1, 2**23 + 5, 2**20 + 7))
            return view.copy_(volume)

        for problem in layers:
            input, weight, bias = problem.tensors(dtype)
            forward = {"split": problem.split, "padding": 1, "groups": problem.groups}
            out = acs_conv3d(input, weight, bias, **forward, backend="torch")
            far = acs_conv3d(apart(input), weight, bias, **forward, backend="cpu")
            torch.testing.assert_close(far, out, rtol=0, atol=0)

            geometry, grad_output = resolve((3, 3), 1, 1, 1), torch.randint(-2, 3, out.shape).to(dtype)
            tail = (problem.split, geometry.stride, geometry.flat_origin(), geometry.flat_dilation())

            def gradients(grad_output, input, problem=problem, weight=weight, tail=tail):
                operators, groups = torch.ops.acsconv, problem.groups
                size = input.shape[2:]
                return (
                    operators.fused_backward_weight(grad_output, input, (3, 3), True, *tail, groups)[0],
                    operators.fused_backward_input(grad_output, weight, size, False, *tail, groups),
                )

            expected = gradients(grad_output, input)
            for one, other in (
                (gradients(apart(grad_output), input), expected),
                (gradients(grad_output, apart(input)), expected),
            ):
                torch.testing.assert_close(one, other, rtol=0, atol=0)


def distributed() -> None:
    """DistributedDataParallel on two processes averages the gradients of the fused kernels."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_replica, (f"{folder}/store",), nprocs=2)


def _replica(rank: int, store: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    layer = ACSConv(2, 7, 3, padding=1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randint(-2, 3, parameter.shape))
    volumes = torch.randint(-2, 3, (4, 2, 4, 5, 6)).float()
    gradient = torch.randint(-2, 3, (4, 7, 4, 5, 6)).float()
    mine = slice(2 * rank, 2 * rank + 2)
    replica = torch.nn.parallel.DistributedDataParallel(layer)
    (replica(volumes[mine]) * gradient[mine]).sum().backward()
    out = acs_conv3d(volumes, layer.weight, layer.bias, padding=1, backend="torch")
    expected = torch.autograd.grad((out * gradient).sum() / 2, list(layer.parameters()))
    for parameter, grad in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=0)
    torch.distributed.destroy_process_group()


def refusals() -> None:
    operators = torch.ops.acsconv
    geometry = resolve((3, 3), 1, 1, 1)
    arguments = Arguments((2, 1, 1), geometry, 1, "cpu")
    input, weight, grad_output = (
        torch.zeros(1, 2, 4, 4, 4),
        torch.zeros(4, 2, 3, 3),
        torch.zeros(1, 4, 4, 4, 4),
    )
    assert all(
        why_not("cpu", operation, input, arguments) is None for operation, family in FUSED_PASSES["cuda"]
    )
    tail = ((2, 1, 1), geometry.stride, geometry.flat_origin(), geometry.flat_dilation())
    for call, text in (
        (
            lambda: operators.fused_forward(input[0], weight, None, *tail, (4, 4, 4), 1),
            "input must have 5 dimensions",
        ),
        (
            lambda: operators.fused_forward(input, weight[:, :1], None, *tail, (4, 4, 4), 1),
            "weight must have 2 input",
        ),
        (
            lambda: operators.fused_forward(input, weight[None], None, (), *tail[1:], (4, 4, 4), 1),
            "three views",
        ),
        (
            lambda: operators.fused_forward(input, weight, None, (2, 1, 2), *tail[1:], (4, 4, 4), 1),
            "split must sum",
        ),
        (
            lambda: operators.fused_backward_input(grad_output[0], weight, (4, 4, 4), False, *tail, 1),
            "5 dimensions",
        ),
        (
            lambda: operators.fused_backward_input(input, weight, (4, 4, 4), False, *tail, 1),
            "must have 4 channels",
        ),
        (
            lambda: operators.fused_backward_input(grad_output, weight, (4, 4), False, *tail, 1),
            "input_size needs 3",
        ),
        (
            lambda: operators.fused_backward_weight(grad_output, input[0], (3, 3), True, *tail, 1),
            "5 dimensions",
        ),
        (
            lambda: operators.fused_backward_weight(grad_output, input.double(), (3, 3), True, *tail, 1),
            "dtype",
        ),
        (
            lambda: operators.fused_backward_weight(grad_output, input, (3,), True, *tail, 1),
            "kernel needs 2 numbers",
        ),
        (lambda: operators.fused_backward_weight(grad_output, input, (3, 3), True, *tail, 3), "groups = 3"),
        (
            lambda: operators.fused_forward(
                input, weight, None, *tail[:2], (2**29,) * 9, tail[3], (4, 4, 4), 1
            ),
            "acsconv: padding or dilation beyond 2^28 is not supported",
        ),
    ):
        try:
            call()
        except RuntimeError as error:
            assert text in str(error), str(error)
        else:
            raise AssertionError(f"not refused: {text}")


def settings() -> None:
    """Read once: what a variable is set to later means nothing."""
    os.environ |= {"ACSCONV_FORWARD_WALK": "", "ACSCONV_TMA": "0"}
    tensors = Problem(16, 21, (3, 3), (4, 5, 9), (8, 7, 6), padding=1).tensors(torch.bfloat16)
    for _ in range(2):
        acs_conv3d(*tensors, padding=1, backend="cpu")
        os.environ["ACSCONV_TMA"] = "yes"


def unknown_walk() -> None:
    os.environ["ACSCONV_TMA"] = "yes"  # wrong as well: the first is reported
    refuses_setting("ACSCONV_FORWARD_WALK", "'shared', 'view' or 'resident'")


def unknown_tma() -> None:
    refuses_setting("ACSCONV_TMA", "'0' or '1'")


def refuses_setting(variable: str, values: str) -> None:
    os.environ[variable] = "yes"
    volume, geometry = torch.ones(1, 3, 4, 4, 4), resolve((3, 3), 1, 1, 1)
    tail = ((1, 1, 1), geometry.stride, geometry.flat_origin(), geometry.flat_dilation())
    for call in (
        lambda: acs_conv3d(volume, torch.ones(3, 3, 3, 3), padding=1, backend="cpu"),
        lambda: torch.ops.acsconv.fused_backward_weight(volume, volume, (3, 3), True, *tail, 1),
    ):
        try:
            call()
        except RuntimeError as error:
            assert f"{variable}: expected {values}, got 'yes'" in str(error), str(error)
        else:
            raise AssertionError(f"{variable}=yes is not refused")


if __name__ == "__main__":
    globals()[sys.argv[2]]()
