"""Experiments on brain volumes; docs/brain.md has their results.

    python -m experiments.brain run               trains, and prints what came out
    python -m experiments.brain predict IN OUT    finds the brain in a volume of your own
    python -m experiments.brain report            makes docs/brain.md from a result file
    python -m experiments.brain figure            makes the figure of docs/brain.md
    python -m experiments.brain volumes           which volumes are there, and the terms of their use

--help behind a command lists its options.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from benchmarks.peers import PeerMissing
from experiments.mylib.options import parse
from experiments.mylib.training import TrainingError

from . import predict, report, run, sources


def _run(arguments: Sequence[str]) -> None:
    options = parse(run.Options, run.__doc__, arguments, "python -m experiments.brain run")
    run.run(options)
    result = run.result_file(options)
    report.main(["--result", str(result), "--print"])


def _volumes(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python -m experiments.brain volumes", description=sources.__doc__)
    parser.parse_args(arguments)
    print("\n".join(sources.overview()))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "run": _run,
    "predict": predict.main,
    "report": report.main,
    "figure": report.figure,
    "volumes": _volumes,
}


def main(arguments: Sequence[str]) -> None:
    name = arguments[0] if arguments else ""
    if name in ("", "-h", "--help"):
        print(__doc__.rstrip())
        raise SystemExit(0 if name else 2)
    if name not in COMMANDS:
        raise SystemExit(f"{name}: expected one of {', '.join(COMMANDS)}; --help says what they do")
    try:
        COMMANDS[name](arguments[1:])
    except (PeerMissing, sources.VolumeMissing, TrainingError, OSError, ValueError) as error:
        raise SystemExit(f"{name}: {error}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
