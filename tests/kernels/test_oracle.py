"""The numpy oracle of the kernel tests against the package's reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernels.harness import (
    backward_bias,
    backward_input,
    backward_weight,
    forward,
    generated_layers,
    integer_data,
)

from acsconv_cuda import reference


@pytest.mark.parametrize("layer", generated_layers(60, seed=3, bias=True), ids=str)
def test_oracle_is_the_reference(layer):
    data = integer_data(layer)
    x, w, b = (torch.from_numpy(a).requires_grad_() for a in (data.input, data.weight, data.bias))
    out = reference.acs_conv3d(x, w, b, layer.split, layer.geometry, layer.groups)
    grads = torch.autograd.grad(out, (x, w, b), torch.from_numpy(data.grad_output))
    expected = (backward_input(layer, data), backward_weight(layer, data), backward_bias(layer, data))
    np.testing.assert_array_equal(out.detach().numpy(), forward(layer, data))
    for ours, theirs in zip(grads, expected, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)
