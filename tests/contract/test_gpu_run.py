"""tests/gpu/run.py, as far as it goes without a GPU: what it would run, and that nothing can hold it up."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def gpu_run():
    spec = importlib.util.spec_from_file_location("gpu_run", ROOT / "tests" / "gpu" / "run.py")
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
    assert sum(gpu_run.STAGES.values()) <= 1500


PROGRAMS = {
    "hears": "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('what there is')",
    "deaf": "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf'); time.sleep(60)",
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_what_hangs_is_stopped(gpu_run, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(gpu_run, "GRACE", 1)
    begin = time.monotonic()
    with open(tmp_path / "log", "w") as log:
        code = gpu_run.run_command([sys.executable, "-uc", PROGRAMS[kind]], 2, log, dict(os.environ))
    assert code == "timeout"
    assert time.monotonic() - begin < 30
    assert (tmp_path / "log").read_text() == ("deaf\n" if kind == "deaf" else "what there is\n")


def test_every_command_is_run_and_kept(gpu_run, tmp_path, monkeypatch):
    """A failure, or a limit, of one command does not keep the next ones from running."""
    monkeypatch.setattr(gpu_run.torch.cuda, "get_device_capability", lambda: (9, 0))
    one, kept = [sys.executable, "-c"], []
    programs = [(60, [*one, "print(1)"]), (60, [*one, "exit(3)"]), (60, [*one, "print(2)"])]
    monkeypatch.setattr(gpu_run, "commands", lambda stage, results: programs)
    gpu_run.run("test", tmp_path, lambda outcome: kept.append(len(outcome["seconds"])))
    assert kept == [1, 2, 3]
    assert [line for line in (tmp_path / "test.log").read_text().split("\n") if line in "12"] == [
        "1",
        "2",
        "",
    ]
