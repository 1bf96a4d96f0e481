"""Fixtures for all tests."""

import contextlib
import os

with contextlib.suppress(ImportError):
    # PyTorch's inductor needs setuptools, which refuses to be imported after the standard library's distutils.
    import setuptools  # noqa: F401

import pytest
import torch

import acsconv_cuda


@pytest.fixture(autouse=True, scope="session")
def _own_compile_cache(tmp_path_factory) -> None:
    """torch.compile keeps backward graphs from process to process, whatever has become of our operators' schemas."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("inductor"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _exact_float32():
    """float32 is float32 on a GPU too, ours and the yardstick's; tests of TF32 switch it on themselves."""
    if not torch.backends.cuda.is_built():
        yield
        return
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(params=acsconv_cuda.backends())
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend in turn; one that cannot be used here is skipped with its own reason."""
    reason = acsconv_cuda.why_unavailable(request.param)
    if reason is not None:
        pytest.skip(reason)
    return request.param


@pytest.fixture
def device(backend: str) -> str:
    """The device on which ``backend`` computes."""
    return "cuda" if backend == "cuda" else "cpu"
