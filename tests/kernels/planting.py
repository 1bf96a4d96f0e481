"""Bugs are planted in a copy of the kernels' sources, by replacing text that stands there once."""

from __future__ import annotations

import shutil
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"
WRONG = "Arrays are not equal"  # what the tests say of wrong results


def copy_sources(root: Path) -> None:
    """What the emulator is built from, as the new folder ``root``."""
    shutil.copytree(CSRC, root, ignore=shutil.ignore_patterns("__pycache__", "cpu"))


def replace_once(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name} has changed: {old!r} is there {text.count(old)} times"
    path.write_text(text.replace(old, new))


def leave_out(
    root: Path,
    kernel: str,
    parameters: str,
    scalars: dict[str, str],
    header: str = "mma_launch.h",
    launcher: str = "MmaLauncher",
) -> None:
    """Replaces instances of a tensor-core kernel by nothing, to save time; ``scalars``: file's name -> type."""
    for name, scalar in scalars.items():
        (root / "kernels" / f"mma_{kernel}_{name}.cu").write_text(
            f'#include "{header}"\nnamespace acsconv {{\ntemplate <>\n'
            f"{launcher} {kernel}_instance<{scalar}>({parameters}) {{ return nullptr; }}\n}}\n"
        )
