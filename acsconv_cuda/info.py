"""``python -m acsconv_cuda.info``: versions, how the package was built, what it can do here, and why not more."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from . import _loader
from .backends import BACKENDS, FUSED_DTYPES, FUSED_PASSES, PASSES, why_unavailable

_FAMILIES = {"acs_conv3d": "acs", "soft_acs_conv3d": "soft"}


def why_not(operator: str, pass_: str, backend: str) -> str | None:
    """Why ``backend`` does not compute a pass of an operator on this machine, in one sentence; None if it does.

    Args:
        operator: "acs_conv3d" or "soft_acs_conv3d".
        pass_: "forward", "backward_input" or "backward_weight".
        backend: "cuda", "cpu" or "torch".
    """
    if backend == "torch":
        return None
    if (pass_, _FAMILIES[operator]) not in FUSED_PASSES[backend]:
        return "no fused kernel has been written; torch computes it"
    return why_unavailable(backend)


def report() -> str:
    """The text that the command prints."""
    return "\n".join([*_versions(), "", *_build(), "", *_features(), "", *_package()])


def _versions() -> list[str]:
    try:
        version = importlib.metadata.version("acsconv-cuda")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed (found by path)"
    torch_cuda = torch.version.cuda or "none"
    return [
        f"acsconv-cuda   {version}",
        f"folder         {_loader._FOLDER}",
        f"Python         {platform.python_version()} on {platform.platform()}",
        f"PyTorch        {torch.__version__}, CUDA {torch_cuda}, {torch.get_num_threads()} CPU threads",
    ]


def _build() -> list[str]:
    record = _loader.build_info()
    if record is None:
        return ["build          none"]
    lines = [
        f"build          {record['mode']}" + (f" ({record['reason']})" if record["reason"] else ""),
        f"  version      {record['version']}, commit {record['commit'] or 'unknown'}, {record['date']}",
    ]
    if record["mode"] != "none":
        lines += [
            f"  PyTorch      {record['torch']}, CUDA {record['torch_cuda'] or 'none'}",
            f"  compiler     {record['compiler']}; CMake {record['cmake']}",
        ]
    if sets := _loader.cpu_instruction_sets():
        lines.append(f"  CPU          {' '.join(sets)}")
    if cuda := record.get("cuda"):
        lines += [
            f"  CUDA         nvcc {cuda['version']}, {cuda['kernels'] or 'unknown number of'} kernels",
            f"  GPUs         {' '.join(cuda['architectures'])}, PTX {' '.join(cuda['ptx']) or 'none'}",
        ]
    return lines


def _features() -> list[str]:
    lines = [f"{'operator':16} {'pass':16}" + "".join(f"{name:>7}" for name in BACKENDS)]
    reasons: list[str] = []
    for operator in _FAMILIES:
        for pass_ in PASSES:
            cells = ""
            for backend in BACKENDS:
                reason = why_not(operator, pass_, backend)
                if reason is not None and reason not in reasons:
                    reasons.append(reason)
                cells += f"{'yes' if reason is None else f'[{reasons.index(reason) + 1}]':>7}"
            lines.append(f"{operator:16} {pass_:16}{cells}")
    lines += [f"  [{number}] {reason}" for number, reason in enumerate(reasons, 1)]
    for backend, dtypes in FUSED_DTYPES.items():
        lines.append(f"  {backend:12} {', '.join(str(dtype).removeprefix('torch.') for dtype in dtypes)}")
    return lines


def _package() -> list[str]:
    return [f"acsconv        {_loader.check_acsconv_package() or 'is that of acsconv-cuda'}"]


if __name__ == "__main__":
    print(report())
