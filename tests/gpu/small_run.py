"""Every fused CUDA kernel, on problems small enough for compute-sanitizer; `make gpu STAGE=sanitize` runs it."""

from __future__ import annotations

import torch
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
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
