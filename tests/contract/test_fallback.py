"""`backend="auto"` on a GPU that the fused kernels cannot serve: it falls back, and says why, once."""

from __future__ import annotations

import importlib
import warnings
from types import SimpleNamespace

import pytest
import torch

from acsconv_cuda import _loader
from acsconv_cuda.geometry import resolve
from acsconv_cuda.ops import Arguments

backends = importlib.import_module("acsconv_cuda.backends")  # the package has a function of that name
REASON = "no kernel for this GPU: its compute capability is 7.5"


@pytest.fixture
def tensor(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What choose() looks at in a tensor on a GPU that is older than every compiled architecture."""
    monkeypatch.delenv("ACSCONV_BACKEND", raising=False)
    monkeypatch.setattr(_loader, "why_no_cuda", lambda device=None: REASON)
    monkeypatch.setattr(backends, "_warned", set())
    return SimpleNamespace(
        device=torch.device("cuda", 1), is_cpu=False, dtype=torch.float32, shape=torch.Size((1, 4, 8, 8, 8))
    )


def arguments(backend: str) -> Arguments:
    return Arguments((2, 1, 1), resolve((3, 3), 1, 1, 1), 1, backend)


def test_auto_falls_back_and_says_why_once(tensor):
    with pytest.warns(RuntimeWarning, match=REASON):
        assert backends.choose("forward", tensor, arguments("auto")) == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for operation in backends.PASSES:
            assert backends.choose(operation, tensor, arguments("auto")) == "torch"


def test_cuda_raises_the_same_reason(tensor):
    with pytest.raises(RuntimeError, match=REASON):
        backends.choose("forward", tensor, arguments("cuda"))


def test_other_dtypes_have_a_reason_of_their_own(tensor, monkeypatch):
    monkeypatch.setattr(_loader, "why_no_cuda", lambda device=None: None)
    assert backends.choose("forward", tensor, arguments("auto")) == "cuda"
    tensor.dtype = torch.complex64
    with pytest.warns(RuntimeWarning, match="not complex64"):
        assert backends.choose("forward", tensor, arguments("auto")) == "torch"
