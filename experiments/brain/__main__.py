"""python -m experiments.brain run | predict IN OUT | report | figure | volumes"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from benchmarks.peers import PeerMissing
from experiments.mylib.options import parse
from experiments.mylib.training import TrainingError

from . import predict, report, run, sources


def _run(arguments: Sequence[str]) -> None:
    options = parse(run.Options, run.__doc__, arguments)
    run.run(options)
    result = run.result_file(options)
    report.main(["--result", str(result), "--print"])


def _volumes(_: Sequence[str]) -> None:
    print("\n".join(sources.overview()))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "run": _run,
    "predict": predict.main,
    "report": report.main,
    "figure": report.figure,
    "volumes": _volumes,
}


def main(arguments: Sequence[str]) -> None:
    command = COMMANDS.get(arguments[0]) if arguments else None
    if command is None:
        raise SystemExit(f"usage: {__doc__}")
    try:
        command(arguments[1:])
    except (PeerMissing, sources.VolumeMissing, TrainingError, FileNotFoundError, ValueError) as error:
        raise SystemExit(f"{arguments[0]}: {error}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
