"""Everything that a machine with a GPU is for, in stages that write their results as they go.

    python tests/gpu/run.py STAGE RESULTS_FOLDER       (make gpu STAGE=... RESULTS=...)

Stages: build (for the chip present), test, sanitize (compute-sanitizer on small problems), bench, or all of them in
this order. Needs torch with CUDA, nvcc, ninja and cmake, and no network: what else there is to have is in .peers, which
`make gpu-prepare` fills and which can be copied along. Each stage leaves a log, and bench its JSON as well;
`summary.json` has the outcome and the seconds of each. Exits 1 if a stage failed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("build", "test", "sanitize", "bench")
# What hardware has yet to choose between in the forward pass (csrc/kernels/dispatch.h): environment of each.
WALKS = {
    "shared": ["ACSCONV_FORWARD_WALK=shared"],
    "view": ["ACSCONV_FORWARD_WALK=view"],
    "tma": ["ACSCONV_FORWARD_WALK=view", "ACSCONV_TMA=1"],
}
BOUNDED = ["timeout", "120"]  # what waits on barriers in shared memory would, if wrong, wait for ever
LIMIT = 480  # seconds that one stage may take
SANITIZER = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"


def commands(stage: str, results: Path) -> list[list[str]]:
    python = sys.executable
    if stage == "build":
        return [[python, "csrc/build_object.py"], [python, "-m", "acsconv_cuda.info"]]
    if stage == "test":
        # What is first must be right before the rest means anything; what is last is the first to be cut off.
        pytest = [python, "-m", "pytest", "-q", "--tb=short", "--maxfail=20", "--durations=10"]
        exact, rest = (
            "bit_for_bit or deterministic",
            ["tests/contract/test_backends.py", "tests/library/test_layers.py"],
        )
        return [
            [
                python,
                "-c",
                "import acsconv_cuda as a; reason = a.why_unavailable('cuda'); assert not reason, reason",
            ],
            [*BOUNDED, python, "tests/gpu/golden.py", str(results / "ptx.json")],
            [*pytest, "tests/gpu", "-k", f"({exact}) and not tma"],
            ["env", *WALKS["shared"], *pytest, "tests/gpu", "-k", "tensor_cores_bit_for_bit or many_tiles"],
            [*pytest, "tests/gpu", "-k", f"not ({exact} or tma)"],
            [*pytest, "tests/reference/test_properties.py", "tests/contract/test_operators.py", *rest],
            [*BOUNDED, "env", *WALKS["view"], *pytest, "tests/gpu", "-k", "tma"],
        ]
    if stage == "sanitize":
        sanitize = [[SANITIZER, "--tool", tool, "--error-exitcode", "1", python, "tests/gpu/small_run.py"]
                    for tool in ("memcheck", "racecheck", "synccheck", "initcheck")]  # fmt: skip
        forced = [["env", *WALKS["shared"]], ["env", *WALKS["tma"], *BOUNDED]]
        return [*sanitize, *([*walk, *command] for walk in forced for command in sanitize[:2])]
    bench = [python, "benchmarks/bench.py", "--device", "cuda", "--suite"]
    return [
        [*bench, "networks", "--json", str(results / "networks.json")],
        [
            *bench,
            "layers",
            "--dtype",
            "bfloat16",
            "--layout",
            "channels_last",
            "--json",
            str(results / "layers-bfloat16.json"),
        ],
        [*bench, "layers", "--dtype", "float32", "--json", str(results / "layers-float32.json")],
        *(
            ["env", *walk, *bench, "layers", "--pass", "forward", "--dtype", "bfloat16", "--layout", "channels_last",
             "--json", str(results / f"layers-bfloat16-{name}.json")]
            for name, walk in WALKS.items()
        ),
    ]  # fmt: skip


def run(stage: str, results: Path) -> dict:
    """Runs the commands of a stage, all of them even if one fails; returns what happened."""
    if stage == "sanitize" and shutil.which(SANITIZER) is None:
        return {"outcome": "skipped", "reason": "compute-sanitizer was not found", "seconds": 0}
    folders = ("", "python", "tests")
    paths = [*(str(ROOT / folder) for folder in folders), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    if stage == "sanitize":
        # Every tensor in memory of its own, so that what lies beyond its end is nobody's.
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    major, minor = torch.cuda.get_device_capability()
    chip = f"{major}.{minor}" + ("a" if (major, minor) == (9, 0) else "")
    environment.setdefault("TORCH_CUDA_ARCH_LIST", chip)
    begin, failed = time.monotonic(), []
    with open(results / f"{stage}.log", "w") as log:
        for command in commands(stage, results):
            print("$", *command, file=log, flush=True)
            left = LIMIT - (time.monotonic() - begin)
            # In a process group of its own, so that nothing of it is left on the GPU beside the next command.
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            try:
                code = process.wait(max(1, left))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = "timeout"
            if code != 0:
                failed.append(f"{code}: {' '.join(command)}")
    seconds = round(time.monotonic() - begin, 1)
    return {"outcome": "failed" if failed else "passed", "failed": failed, "seconds": seconds}


def main() -> int:
    if len(sys.argv) != 3 or sys.argv[1] not in (*STAGES, "all"):
        print(__doc__)
        return 2
    if not torch.cuda.is_available():
        print(f"No GPU: PyTorch {torch.__version__} finds no CUDA device here, so nothing was run.")
        return 0
    results = Path(sys.argv[2]).resolve()
    results.mkdir(parents=True, exist_ok=True)
    summary_file = results / "summary.json"
    summary = json.loads(summary_file.read_text()) if summary_file.exists() else {}
    for stage in STAGES if sys.argv[1] == "all" else (sys.argv[1],):
        summary[stage] = run(stage, results)
        summary_file.write_text(json.dumps(summary, indent=2) + "\n")
        tail = (results / f"{stage}.log").read_text().splitlines()[-40:] if summary[stage]["seconds"] else []
        print(f"== {stage}: {summary[stage]}", *tail, sep="\n", flush=True)
    return int(any(stage["outcome"] == "failed" for stage in summary.values()))


if __name__ == "__main__":
    sys.exit(main())
