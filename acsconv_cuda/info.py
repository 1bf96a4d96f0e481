"""``python -m acsconv_cuda.info``: versions, how the package was built, what it can do here, and why not more."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from . import _loader

#: (operator, pass) -> the compiled operator that computes it; None where there is none and "torch" always does it.
FEATURES: dict[tuple[str, str], str | None] = {
    ("acs_conv3d", "forward"): "acsconv::fused_forward",
    ("acs_conv3d", "backward input"): None,
    ("acs_conv3d", "backward weight"): None,
    ("soft_acs_conv3d", "forward"): None,
    ("soft_acs_conv3d", "backward input"): None,
    ("soft_acs_conv3d", "backward weight"): None,
}

_NO_KERNEL = "no fused kernel has been written"


def why_not(operator: str | None, backend: str) -> str | None:
    """Why ``backend`` ("cuda", "cpu" or "torch") does not run a compiled operator here; None if it does."""
    if backend == "torch":
        return None
    if operator is None:
        return _NO_KERNEL
    if not _loader.loaded():
        return _loader.failure()
    if backend == "cuda" and (reason := _loader.why_no_cuda()):
        return reason
    if not torch._C._dispatch_has_kernel_for_dispatch_key(operator, backend.upper()):
        return "the compiled part lacks it: rebuild"
    return None


def report() -> str:
    """The text that the command prints."""
    return "\n".join([*_versions(), "", *_build(), "", *_features(), "", *_package()])


def _versions() -> list[str]:
    try:
        version = importlib.metadata.version("acsconv-cuda")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed (found by path)"
    return [
        f"acsconv-cuda   {version}",
        f"folder         {_loader._FOLDER}",
        f"Python         {platform.python_version()} on {platform.platform()}",
        f"PyTorch        {torch.__version__}, CUDA {torch.version.cuda or 'none'}, {torch.get_num_threads()} CPU threads",
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
    if cuda := record.get("cuda"):
        lines += [
            f"  CUDA         nvcc {cuda['version']}, {cuda['kernels'] or 'unknown number of'} kernels",
            f"  GPUs         {' '.join(cuda['architectures'])}, PTX {' '.join(cuda['ptx']) or 'none'}",
        ]
    return lines


def _features() -> list[str]:
    backends = ("cuda", "cpu", "torch")
    lines = [f"{'operator':16} {'pass':16}" + "".join(f"{name:>7}" for name in backends)]
    reasons: list[str] = []
    for (operator, pass_), compiled in FEATURES.items():
        cells = ""
        for backend in backends:
            reason = why_not(compiled, backend)
            if reason is not None and reason not in reasons:
                reasons.append(reason)
            cells += f"{'yes' if reason is None else f'[{reasons.index(reason) + 1}]':>7}"
        lines.append(f"{operator:16} {pass_:16}{cells}")
    return lines + [f"  [{number}] {reason}" for number, reason in enumerate(reasons, 1)]


def _package() -> list[str]:
    return [f"acsconv        {_loader.check_acsconv_package() or 'is that of acsconv-cuda'}"]


if __name__ == "__main__":
    print(report())
