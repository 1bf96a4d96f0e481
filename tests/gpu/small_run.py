"""Every fused CUDA kernel, on problems small enough for compute-sanitizer; `make gpu STAGE=sanitize` runs it."""

from __future__ import annotations

import torch
from kernels.mma_layers import grouped_layers, mma_layers
from numerics import random_problems

from acsconv_cuda import acs_conv3d, soft_acs_conv3d


def main() -> None:
    for index, problem in enumerate(random_problems(24, seed=3)):
        dtype = (torch.float32, torch.float64, torch.float16, torch.bfloat16)[index % 4]
        tensors = [t.to("cuda", dtype).requires_grad_() for t in problem.tensors()]
        options = {name: getattr(problem, name) for name in ("stride", "padding", "dilation", "groups")}
        acs_conv3d(*tensors, split=problem.split, backend="cuda", **options).sum().backward()
        input, weight, bias = tensors
        factors = torch.rand(problem.out_channels, 3, device="cuda", dtype=dtype, requires_grad=True)
        soft_acs_conv3d(input, weight, factors, bias, backend="cuda", **options).sum().backward()
    run_on_tensor_cores()
    torch.cuda.synchronize()


def run_on_tensor_cores() -> None:
    """Both ways to load (copied, gathered), every tile, and a reduction cut into parts."""
    torch.backends.cudnn.allow_tf32 = True
    layers = [
        *mma_layers(18, seed=4),
        *mma_layers(6, seed=5, stride=(2, 2, 2), dilation=(1, 1, 1)),
        *(
            mma_layers(1, seed=6, kernel=(taps, taps), stride=(stride,) * 3, dilation=(1, 1, 1))[0]
            for taps in (5, 7)
            for stride in (1, 2)
        ),
        *grouped_layers(6, seed=7),
    ]
    for index, layer in enumerate(layers):
        dtype = getattr(torch, layer.dtype)
        shapes = (layer.input_shape, layer.weight_shape, (layer.out_channels,))
        input, weight, bias = (torch.randn(shape, device="cuda", dtype=dtype) for shape in shapes)
        if layer.layout == "channels_last":
            input = input.contiguous(memory_format=torch.channels_last_3d)
        tensors = [t.requires_grad_() for t in (input, weight, bias)]
        options = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
        if index % 3 == 0:
            factors = torch.rand(layer.out_channels, 3, device="cuda", dtype=dtype, requires_grad=True)
            out = soft_acs_conv3d(*tensors[:2], factors, bias, backend="cuda", **options)
        else:
            out = acs_conv3d(*tensors, split=layer.split, backend="cuda", **options)
        out.backward(torch.randn_like(out))  # not an expanded gradient, which is never copied


if __name__ == "__main__":
    main()
