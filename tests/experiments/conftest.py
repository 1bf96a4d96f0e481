"""What trains is optional: without it the tests of the experiments are skipped, and say so."""

import importlib.util
from pathlib import Path

import pytest

import experiments  # noqa: F401  before lightning, which imports torchvision

NEEDED = (
    "lightning",
    "matplotlib",
    "monai",
    "nibabel",
    "sklearn",
    "tensorboard",
    "torchmetrics",
    "torchvision",
    "tqdm",
)
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


class _Skipped(pytest.Module):
    def collect(self):
        pytest.skip(f"the experiments need {', '.join(MISSING)}", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return _Skipped.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture
def peers(tmp_path_factory, monkeypatch) -> Path:
    """A folder as `make volumes` fills it, with small made volumes, in the place of the real one."""
    folder = tmp_path_factory.getbasetemp() / "peers"
    monkeypatch.setenv("ACSCONV_VOLUMES", str(folder))
    if not folder.is_dir():
        import made_brains  # needs nibabel

        made_brains.make()
    return folder
