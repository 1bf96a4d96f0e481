"""Our layer beside nn.Conv3d and the real acsconv 0.1.1: time, peak memory and error, on any device.

    python benchmarks/bench.py                          # smoke suite, then the main job on a brain volume
    python benchmarks/bench.py --suite layers --save    # kept as benchmarks/results/<machine>/<date>-<commit>.json
    python benchmarks/bench.py --case nnunet --pass train --layout channels_last --threads 1
    python benchmarks/bench.py --compare OLD.json --fail-above 1.1

Suites: ``smoke`` (a small layer of each kind), ``layers`` (ACSUNet, ResNet-18, an nnU-Net-like ladder, first
layers, strided, dilated, Soft, depthwise), ``networks`` (ACSUNet, and MobileNetV2 with its
ImageNet weights, on a patch of the MNI152 T1 volume), ``memory`` (training steps of three networks at growing
volumes, each in a process under a limit, until memory runs out)."""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]  # the table of cases is shared with the tests

import environment  # noqa: E402
import memory_report  # noqa: E402
import memory_suite  # noqa: E402
import networks  # noqa: E402
import report  # noqa: E402
import result_file  # noqa: E402
import torch  # noqa: E402
from acsconv.memory.estimate import parse_bytes  # noqa: E402
from cases import Case, select  # noqa: E402
from harness import FORMATS, Format, can_keep_freed_memory, ceilings  # noqa: E402
from implementations import COMPILED, LAYOUTS, available  # noqa: E402
from measure import PASSES, Settings, measure_case  # noqa: E402
from peers import PeerMissing, load_acsconv  # noqa: E402

import acsconv_cuda  # noqa: E402

try:
    from tqdm import tqdm
except ImportError:  # a bare interpreter with torch is enough to measure
    tqdm = None

SUITES = ("smoke", "layers", "networks", "memory")
PATCH = {"cpu": 64, "cuda": 128}
DEFAULT_FIGURE = ROOT / "benchmarks" / "out" / "feature_maps.png"
# suite -> (rounds at least, seconds per implementation at least)
EFFORT = {"smoke": (5, 0.05), "layers": (11, 0.3), "networks": (3, 0.0), "memory": (2, 0.0)}
QUICK = (2, 0.0)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--suite", nargs="+", choices=SUITES, help="default: smoke networks; layers if --case is given"
    )
    what.add_argument(
        "--case",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="only layers whose name contains or matches PATTERN",
    )
    what.add_argument("--pass", dest="pass_name", choices=(*PASSES, "both"), default="both")
    what.add_argument(
        "--backend", nargs="+", help="only these backends of ours; default: all that are available"
    )
    what.add_argument(
        "--without-compiled",
        action="store_true",
        help=f"not {COMPILED}: compiling it takes longer than to measure all others",
    )
    what.add_argument(
        "--dtype",
        nargs="+",
        choices=FORMATS,
        default=["float32"],
        help="tf32: float32, which PyTorch's convolutions may round for a GPU's tensor cores; in float32 they may not",
    )
    what.add_argument("--layout", nargs="+", choices=LAYOUTS, default=["contiguous"])
    what.add_argument("--batch", type=int, help="batch size instead of that of the case")
    what.add_argument("--scale", type=int, default=1, help="every edge of the volume so many times as long")
    what.add_argument("--patch", type=int, help=f"edge of the patch of the main job; default {PATCH}")
    what.add_argument(
        "--memory-limit",
        metavar="BYTES",
        help="of a process of the memory suite, e.g. 4GiB; default: 2GiB on a CPU, all of a GPU",
    )
    what.add_argument(
        "--largest",
        type=int,
        metavar="EDGE",
        help="the memory suite's volumes end there; default: memory does",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--device", choices=PATCH, help="default: cuda if there is one")
    how.add_argument("--threads", type=int, help="threads of torch on the CPU")
    how.add_argument("--repeats", type=int, help=f"rounds at least; default by suite: {EFFORT}")
    how.add_argument("--min-time", type=float, help="seconds that each implementation runs at least")
    how.add_argument(
        "--fresh-pages",
        action="store_true",
        help="leave malloc as it is, so that large results are fresh pages at most calls; by default, on a CPU, freed "
        "memory is kept for the next call, whichever implementation makes it",
    )
    how.add_argument("--quick", action="store_true", help=f"{QUICK[0]} rounds: does it run, not how fast")
    out = parser.add_argument_group("output")
    out.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    out.add_argument(
        "--save", action="store_true", help="write it to benchmarks/results/<machine>/<date>-<commit>.json"
    )
    out.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the times")
    out.add_argument(
        "--figure", type=Path, metavar="FILE.png", help="feature maps of the main job", default=DEFAULT_FIGURE
    )
    out.add_argument("--compare", type=Path, metavar="FILE", help="set beside an older result")
    out.add_argument(
        "--fail-above",
        type=float,
        metavar="RATIO",
        help="with --compare: exit 1 if ours takes more than RATIO times as long",
    )
    out.add_argument("--list", action="store_true", help="print the layers chosen, and stop")
    options = parser.parse_args(arguments)
    if options.fail_above is not None and options.compare is None:
        parser.error("--fail-above needs --compare")
    if os.environ.get("ACSCONV_BACKEND"):
        parser.error("ACSCONV_BACKEND is set, which would measure that backend under every name of ours")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if options.memory_limit is not None:
        try:
            options.memory_limit = parse_bytes(options.memory_limit)
        except ValueError as error:
            parser.error(f"--memory-limit: {error}")
    for name in ("threads", "repeats", "batch", "scale", "patch", "memory_limit", "largest"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    options.device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if "tf32" in options.dtype and options.device.type != "cuda":
        parser.error(f"--dtype tf32: {options.device.type} has none, it is for --device cuda")
    options.suite = options.suite or (["layers", "smoke"] if options.case else ["smoke", "networks"])
    options.passes = PASSES if options.pass_name == "both" else (options.pass_name,)
    options.arguments = sys.argv[1:] if arguments is None else arguments
    return options


def chosen_cases(options: argparse.Namespace) -> list[tuple[str, Case]]:
    return [
        (suite, case.resized(options.batch, options.scale))
        for suite in options.suite
        for case in select(suite, tuple(options.case))
    ]


def choose_backends(wanted: list[str] | None, device: torch.device) -> tuple[list[str], list[str]]:
    """(backends of ours to measure on this device, one sentence for each that is not available)."""
    known = acsconv_cuda.backends()
    of_device = [name for name in known if name in (device.type, "torch")]
    unknown = [name for name in wanted or [] if name not in of_device]
    if unknown:
        raise ValueError(f"--backend {' '.join(unknown)}: on {device.type} there are {', '.join(of_device)}")
    names = wanted or of_device
    notes = [
        f"Backend {name} is not available: {acsconv_cuda.why_unavailable(name)}"
        for name in names
        if not known[name]
    ]
    return [name for name in names if known[name]], notes


class Progress:
    """A bar over rounds on stderr where tqdm is installed; lines go to stdout beside it."""

    def __init__(self, total: int) -> None:
        self.bar = tqdm(total=total, unit="round", leave=False, disable=None) if tqdm else None

    def describe(self, text: str) -> None:
        if self.bar is not None:
            self.bar.set_description(text)

    def step(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def print(self, lines: list[str]) -> None:
        text = "\n".join(lines)
        if self.bar is not None:
            self.bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def effort(options: argparse.Namespace, suite: str) -> tuple[int, float]:
    repeats, min_time = QUICK if options.quick else EFFORT[suite]
    return options.repeats or repeats, min_time if options.min_time is None else options.min_time


def keep_freed_memory(options: argparse.Namespace) -> bool:
    return options.device.type == "cpu" and not options.fresh_pages and can_keep_freed_memory()


def settings(options: argparse.Namespace, suite: str) -> Settings:
    return Settings(options.device, *effort(options, suite), keep_freed_memory(options))


def run(options: argparse.Namespace) -> dict:
    """Measure what the options ask for, printing as it goes; the result object."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    record = {**environment.collect(options.device), "freed_memory_kept": keep_freed_memory(options)}
    warnings = [
        *environment.conv3d_warnings(record["torch"], record["cudnn"], options.device.type),
        *environment.thread_warnings(record["threads"], record["cores"], options.device.type),
    ]
    backends, notes = choose_backends(options.backend, options.device)
    try:
        peer = load_acsconv()
    except PeerMissing as missing:
        peer = None
        notes.append(f"Without acsconv 0.1.1: {missing}")
    print("\n".join([*environment.lines(record), *(f"WARNING: {line}" for line in warnings), *notes, ""]))

    implementations = available(options.device, peer, backends)
    if options.without_compiled:
        implementations = [one for one in implementations if one.name != COMPILED]
    cases = chosen_cases(options)
    modes = [(FORMATS[name], layout) for name in options.dtype for layout in options.layout]
    with_networks = "networks" in options.suite
    rounds = sum(effort(options, suite)[0] for suite, _ in cases)
    rounds += effort(options, "networks")[0] * with_networks * len(networks.NETWORKS)
    with_memory = "memory" in options.suite
    contestants = memory_suite.implementations(options.device, backends, peer is not None)
    processes = len(memory_suite.NETWORKS) * len(contestants) * with_memory
    progress = Progress(rounds * len(modes) * len(options.passes) + processes)
    rows: list[dict] = []
    if rounds:
        progress.print([report.HEADER])
    try:
        for format, layout in modes:
            if options.device.type == "cuda":
                format.use()
            limits = ceilings(options.device, format.dtype)
            for suite, case in cases:
                progress.describe(case.name)
                case_rows = []
                for pass_name in options.passes:
                    case_rows += measure_case(
                        case,
                        pass_name,
                        implementations,
                        settings(options, suite),
                        limits,
                        format,
                        layout,
                        progress.step,
                    )
                progress.print(report.table_lines(case_rows))
                rows += case_rows
            if with_networks:
                network_rows, network_notes = main_jobs(
                    options, peer, backends, limits, format, layout, progress
                )
                rows += network_rows
                notes += [note for note in network_notes if note not in notes]
        if with_memory:
            memory_rows, memory_note = growing_volumes(options, contestants, progress)
            rows += memory_rows
            notes.append(memory_note)
    except KeyboardInterrupt:
        notes.append("Interrupted: the rest was not measured.")
    finally:
        progress.close()
    return {
        "schema": result_file.SCHEMA,
        "schema_version": result_file.SCHEMA_VERSION,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/bench.py", *options.arguments]),
        "settings": {
            "suites": options.suite,
            "effort": {suite: effort(options, suite) for suite in options.suite},
        },
        "environment": record,
        "warnings": warnings,
        "notes": notes,
        "rows": rows,
    }


def main_jobs(
    options, peer, backends, limits, format: Format, layout, progress: Progress
) -> tuple[list[dict], list[str]]:
    """Rows and notes of whole networks on a real patch; draws the feature maps."""
    edge = options.patch or PATCH[options.device.type]
    patch, source, missing = networks.real_patch(edge)
    notes = [f"Main jobs on a central patch of {edge}³ voxels of: {source}"]
    if missing:
        notes.append(f"Without the real volume: {missing}")
    rows: list[dict] = []
    for job in networks.NETWORKS:
        progress.describe(job.name)
        try:
            built = job.build(peer, backends, notes)
        except PeerMissing as reason:
            notes.append(f"Without {job.name}: {reason}")
            continue
        job_rows = networks.run(
            job,
            built,
            patch,
            options.passes,
            settings(options, "networks"),
            limits,
            format,
            layout,
            progress.step,
        )
        parameters = {row["implementation"]: row["parameters"] for row in job_rows}
        counts = ", ".join(f"{name} {count:,}" for name, count in parameters.items())
        notes.append(f"Parameters of {job.name}: {counts}")
        progress.print(report.table_lines(job_rows))
        rows += job_rows
    try:
        networks.draw_figure(peer, patch, source, options.figure)
    except ImportError as error:
        notes.append(f"No figure of feature maps: {error}")
    progress.print(notes)
    return rows, notes


def growing_volumes(
    options: argparse.Namespace, contestants: list[str], progress: Progress
) -> tuple[list[dict], str]:
    """Rows of the memory suite, printed as tables, and a note that says how they were made."""
    limit = options.memory_limit or memory_suite.LIMIT[options.device.type]
    steps, _ = effort(options, "memory")

    def advance(title: str, edge: int | None) -> None:
        progress.describe(title if edge is None else f"{title}, {edge}³")
        if edge is None:
            progress.step()

    rows = memory_suite.measure_all(
        options.device, contestants, limit, steps, torch.get_num_threads(), options.largest, advance
    )
    until = "all of the card's memory" if limit is None else f"{limit / 2**30:.3g} GiB"
    note = (
        f"Growing volumes: batch 1, Adam, float32, a process of its own for each, up to {until}. Peak of its resident "
        "memory, or of torch's on a GPU, with parameters and optimiser, beyond what it held after a first step."
    )
    progress.print([*memory_report.lines(rows), note])
    return rows, note


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.list:
        print(
            "\n".join(
                f"{suite:10}{case.name:28}{case.family:13}{case.describe()}"
                for suite, case in chosen_cases(options)
            )
        )
        return 0
    try:
        old = result_file.load(options.compare) if options.compare else None
        result = run(options)
    except (OSError, ValueError) as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 2
    means = report.mean_lines(result["rows"])
    if means:
        print("\n".join(["", *means]))
    layers = result_file.without_memory(result["rows"])
    methods = dict.fromkeys(row["memory"]["method"] for row in layers if row["memory"])
    print(
        "\n".join(
            f"Peak memory: {method}; parameters, input and output gradient not counted." for method in methods
        )
    )
    targets = [options.json] if options.json else []
    if options.save:
        targets.append(environment.result_path(result["environment"], result["created"]))
    for target in targets:
        result_file.save(result, target)
        print(f"Result: {target}")
    if options.plot:
        for path in report.plots(result, options.plot):
            print(f"Plot: {path}")
    failed = not result["rows"]
    if failed:
        print("bench.py: no layer matches", file=sys.stderr)
    if old is not None:
        lines, worst = report.compare(result, old)
        print("\n".join([f"Compared with {options.compare.name}:", *lines]))
        if options.fail_above is not None and worst is not None and worst > options.fail_above:
            print(
                f"bench.py: ours takes up to {worst:.2f} times as long, allowed {options.fail_above:.2f}",
                file=sys.stderr,
            )
            failed = True
    wrong = [
        row
        for row in result["rows"]
        if row["status"] == "wrong" and result_file.is_ours(row["implementation"])
    ]
    for row in wrong:
        print(f"bench.py: wrong result: {row['case']} {row['pass']} {row['implementation']}", file=sys.stderr)
    return 1 if failed or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
