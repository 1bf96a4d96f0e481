"""tests/gpu/run.py, as far as it goes without a GPU: what it would run, and that nothing can hold it up."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "tests" / "gpu" / "run.py"


@pytest.fixture
def gpu_run():
    spec = importlib.util.spec_from_file_location("gpu_run", RUN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_commands_name_what_is_there(gpu_run, tmp_path):
    for stage, seconds in gpu_run.STAGES.items():
        commands = gpu_run.commands(stage, tmp_path)
        files = [Path(word) for _, command in commands for word in command]
        for path in files:
            if path.parts[0] in ("tests", "benchmarks", "csrc"):
                assert (ROOT / path).exists(), path
        results = [path for path in files if path.is_relative_to(tmp_path)]
        assert len(set(results)) == len(results) <= 6  # beside the log and the summary
        assert all(0 < limit <= seconds for limit, _ in commands)
    assert max(gpu_run.STAGES.values()) < 600
    bench = [command for _, command in gpu_run.commands("bench", tmp_path)]
    # Compiling takes longer than measuring, so it comes last.
    assert all("--without-compiled" in command for command in bench[:-1])


def test_no_test_runs_twice(gpu_run, tmp_path):
    """-k looks for parts of words: float16 is one of bfloat16."""
    chosen = []
    for _, command in gpu_run.commands("test", tmp_path):
        if "tests/gpu" in command and "env" not in command:
            collected = subprocess.run(
                [*command, "--collect-only"], cwd=ROOT, capture_output=True, text=True, check=True
            )
            chosen += [line for line in collected.stdout.splitlines() if "::" in line]
    assert len(chosen) > 500
    assert len(set(chosen)) == len(chosen)


PROGRAMS = {
    "hears": "import time\ntry: time.sleep(600)\nexcept KeyboardInterrupt: print('what there is')",
    "deaf": "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf'); time.sleep(600)",
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_what_hangs_is_stopped(gpu_run, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(gpu_run, "GRACE", 1)
    begin = time.monotonic()
    with open(tmp_path / "log", "w") as log:
        code = gpu_run.run_command([sys.executable, "-Suc", PROGRAMS[kind]], 10, log, dict(os.environ))
    assert code == "timeout"
    assert time.monotonic() - begin < 60
    assert (tmp_path / "log").read_text() == ("deaf\n" if kind == "deaf" else "what there is\n")


def test_every_command_is_run_and_kept(gpu_run, tmp_path, monkeypatch):
    """A failure, or a limit, of one command does not keep the next ones from running."""
    monkeypatch.setattr(gpu_run.torch.cuda, "get_device_capability", lambda: (9, 0))
    one, kept = [sys.executable, "-c"], []
    programs = [(60, [*one, "print(1)"]), (60, [*one, "exit(3)"]), (60, [*one, "print(2)"])]
    monkeypatch.setattr(gpu_run, "commands", lambda stage, results: programs)
    monkeypatch.setattr(gpu_run, "preparations", lambda: [(60, [*one, "print(0)"])])
    gpu_run.run("test", tmp_path, lambda outcome: kept.append(len(outcome["seconds"])))
    assert kept == [1, 2, 3, 4]
    assert [line for line in (tmp_path / "test.log").read_text().split("\n") if line in "12"] == [
        "1",
        "2",
        "",
    ]


def test_nothing_runs_without_the_kernels(gpu_run, tmp_path, monkeypatch):
    """What would be tested and measured then is PyTorch."""
    monkeypatch.setattr(gpu_run.torch.cuda, "get_device_capability", lambda: (9, 0))
    kept = []
    monkeypatch.setattr(gpu_run, "preparations", lambda: [(60, [sys.executable, "-c", "exit(1)"])])
    gpu_run.run("bench", tmp_path, lambda outcome: kept.append(outcome["outcome"]))
    assert kept == ["failed"]


def test_what_runs_is_stopped_with_it(tmp_path):
    """A call that is stopped leaves nothing on the GPU beside the next one."""
    program = (
        "import os, runpy, signal, sys\n"
        f"run = runpy.run_path({str(RUN)!r})\n"
        "signal.signal(signal.SIGTERM, run['stop'])\n"
        "child = 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'\n"
        "run['run_command']([sys.executable, '-Sc', child], 600, sys.stdout, dict(os.environ))\n"
    )
    runner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    child = int(runner.stdout.readline())
    runner.terminate()
    assert runner.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
