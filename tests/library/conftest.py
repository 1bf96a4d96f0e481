"""Fixtures of the converters' tests."""

import pytest
import torch
from library.small_networks import Net


@pytest.fixture
def net():
    net = Net().double()
    net(torch.randn(8, 3, 32, 32, dtype=torch.float64))  # statistics that are not 0 and 1
    return net.eval()


@pytest.fixture
def volume():
    return torch.randn(2, 3, 16, 24, 32, dtype=torch.float64)
