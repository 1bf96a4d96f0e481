"""Converts every network of torchvision, timm, segmentation_models_pytorch and MONAI, and writes docs/coverage.md.

    python benchmarks/model_coverage.py                  # goes on where it stopped; small networks first
    python benchmarks/model_coverage.py --only 'timm/resnet*' --again
    python benchmarks/model_coverage.py --table          # only writes the table again

Each network is built with random weights and checked twice. ``to="acs"``: a small volume goes forward and backward in
training mode; keys and shapes of the state_dict are the 2D network's, and the same parameters get gradients.
``to="2.5d"``: on a volume that repeats one image the output must be the 2D network's in every slice; the difference
is divided by how much the 2D output itself changes from one image to another, after batch normalisation has been
calibrated, so that a network that ignores its input cannot pass.

Networks run one after the other in a process of their own, with a limit on time and memory each. Results are kept,
line by line, in benchmarks/results/coverage.jsonl.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from acsconv.converters import convert
from model_zoo import Entry, entries
from torch import Tensor, nn
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "coverage.jsonl"
COUNTS = HERE / "out" / "coverage-parameters.json"
TABLE = HERE.parent / "docs" / "coverage.md"
SIZES = (32, 64, 96, 128)
TOLERANCE = 1e-3  # of what another image changes; float32 through some hundred layers


# --- one network ------------------------------------------------------------------------------------------------------


def check(entry: Entry) -> dict[str, Any]:
    """What a conversion of the network gives; see the top of this file."""
    torch.manual_seed(0)
    model = entry.build()
    result: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    make_sensitive(model)
    try:
        training, size, gradients = smallest_size(model, entry.channels)
    except RuntimeError as error:
        return {**result, "status": "2d fails", "reason": shorten(error)}
    result.update(size=size, training=training)
    try:
        converted = convert(model, "acs")
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        if {key: tuple(value.shape) for key, value in converted.state_dict().items()} != shapes:
            raise AssertionError("state_dict differs")
        result["parameters_3d"] = sum(p.numel() for p in converted.parameters())
        out, reached = train_step(converted, torch.randn(2, entry.channels, size, size, size), training)
        result["output"] = [list(tensor.shape) for tensor in out]
        if reached != gradients:
            missing = sorted(gradients ^ reached)
            raise AssertionError(
                f"{len(missing)} parameters differ in having a gradient, such as {missing[0]}"
            )
        del converted, out
    except Exception as error:
        return {**result, "status": "failed", "reason": f"{type(error).__name__}: {shorten(error)}"}
    passed = False
    # Some networks magnify rounding errors: the deepest beyond float64, unless their branches count less.
    for dtype, scale in ((torch.float32, 1.0), (torch.float64, 1.0), (torch.float64, 0.1)):
        if not passed:
            try:
                if scale != 1.0:
                    torch.manual_seed(0)
                    make_sensitive(model := entry.build(), scale)
                result.update(semantics(model.to(dtype), entry.channels, size, training))
            except Exception as error:
                reason = f"2.5d: {type(error).__name__}: {shorten(error)}"
                return {**result, "status": "failed", "reason": reason}
            passed = result["difference"] <= TOLERANCE * result["sensitivity"]
    if not passed:
        result["reason"] = (
            "2.5d differs from 2D" if result["sensitivity"] > 0 else "2D output ignores its input"
        )
    return {**result, "status": "converted" if passed else "semantics"}


def make_sensitive(model: nn.Module, scale: float = 1.0) -> None:
    """Undoes initialisations that switch branches off: scales and last weights of 0 or almost 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            last = name.rpartition(".")[2]
            if parameter.dim() <= 1 and "bias" not in last and parameter.abs().max() < 1e-2:
                parameter.fill_(scale)
            elif parameter.dim() > 1 and parameter.abs().max() == 0:
                parameter.normal_(std=0.02)


def smallest_size(model: nn.Module, channels: int) -> tuple[bool, int, set[str]]:
    """In training mode if it can be: the smallest size that the 2D network takes, and what then gets gradients."""
    for training in (True, False):
        for size in SIZES:
            try:
                trial = copy.deepcopy(model)
                return training, size, train_step(trial, torch.randn(2, channels, size, size), training)[1]
            except (RuntimeError, ValueError, AssertionError) as error:
                last = error
    raise RuntimeError(last)


def train_step(model: nn.Module, input: Tensor, training: bool) -> tuple[list[Tensor], set[str]]:
    """The outputs, and the names of the parameters that got a gradient."""
    model.train(training)
    out = tensors(model(input))
    sum(tensor.float().square().mean() for tensor in out).backward()
    if not all(torch.isfinite(tensor).all() for tensor in out):
        raise RuntimeError("output is not finite")
    return out, {name for name, parameter in model.named_parameters() if parameter.grad is not None}


@torch.no_grad()
def semantics(model: nn.Module, channels: int, size: int, training: bool) -> dict[str, float]:
    """Largest difference of the 2.5D conversion from the 2D network, and of two images, relative to the output."""
    dtype = next(model.parameters()).dtype
    if training:
        calibrate(model, torch.randn(4, channels, size, size, dtype=dtype))
    model.eval()
    image, other = torch.randn(2, 1, channels, size, size, dtype=dtype)
    expected, another = tensors(model(image)), tensors(model(other))
    converted = convert(model, "2.5d")
    depths = (8, size) if expected[0].dim() == 2 else (size,)
    for depth in depths:
        try:
            out = tensors(converted(image.unsqueeze(2).expand(-1, -1, depth, -1, -1)))
            break
        except (RuntimeError, ValueError):
            if depth == depths[-1]:
                raise
    difference = sensitivity = 0.0
    for flat, moved, deep in zip(expected, another, out, strict=True):
        if deep.dim() == 5:
            flat, moved = flat.unsqueeze(2), moved.unsqueeze(2)
        if flat.shape[1] != deep.shape[1] or flat.shape[-1] != deep.shape[-1]:
            raise AssertionError(f"output {tuple(deep.shape)} for {tuple(flat.shape)} in 2D")
        scale = flat.abs().max().clamp_min(1e-30)
        difference = max(difference, float((deep - flat).abs().max() / scale))
        sensitivity = max(sensitivity, float((moved - flat).abs().max() / scale))
    return {"difference": difference, "sensitivity": sensitivity}


def calibrate(model: nn.Module, images: Tensor) -> None:
    """Sets the running statistics of batch normalisation to those of some images."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    model(images)
    for norm, momentum in zip(norms, before):
        norm.momentum = momentum


def tensors(tree: Any) -> list[Tensor]:
    """The floating-point tensors of an output, in order."""
    if isinstance(tree, Tensor):
        return [tree] if tree.is_floating_point() and tree.dim() > 0 else []
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [t for part in tree for t in tensors(part)] if isinstance(tree, (list, tuple)) else []


def shorten(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


# --- all networks -----------------------------------------------------------------------------------------------------


def work() -> None:
    """The other process: a name a line comes in, a result a line goes out."""
    torch.set_num_threads(1)
    by_name = {entry.name: entry for entry in entries()}
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no result
    for line in sys.stdin:
        entry, start = by_name[line.strip()], time.monotonic()
        try:
            result = check(entry)
        except Exception as error:
            result = {"status": "not built", "reason": f"{type(error).__name__}: {shorten(error)}"}
        result["seconds"] = round(time.monotonic() - start, 1)
        print(json.dumps(result), file=results, flush=True)


class Worker:
    """A process that checks networks; started anew after one that took too long or too much."""

    def __init__(self, seconds: float, gigabytes: float) -> None:
        self.seconds, self.bytes = seconds, gigabytes * 2**30
        self.process: subprocess.Popen | None = None

    def check(self, name: str) -> dict[str, Any]:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--work"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        end = self._seconds() + self.seconds
        while self._seconds() < end:
            if select.select([self.process.stdout], [], [], 0.5)[0]:
                line = self.process.stdout.readline()
                return json.loads(line) if line else self.stop("crashed")
            if self._memory() > self.bytes:
                return self.stop(f"needs more than {self.bytes / 2**30:.0f} GB here")
        return self.stop(f"takes more than {self.seconds:.0f} s of one core")

    def stop(self, reason: str = "") -> dict[str, Any]:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        return {"status": "not run", "reason": reason}

    def _memory(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def _seconds(self) -> float:
        """Processor time of the process so far: a busy machine is no fault of the network."""
        user, system = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def load() -> dict[str, dict[str, Any]]:
    """The latest result of each network."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {result["name"]: result for result in map(json.loads, lines)}


def sizes(todo: list[Entry]) -> dict[str, float]:
    """Numbers of parameters, counted without memory, to begin with the small ones."""
    found = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
    for entry in tqdm([e for e in todo if e.name not in found], desc="counting parameters", leave=False):
        try:
            with torch.device("meta"):
                found[entry.name] = sum(p.numel() for p in entry.build().parameters())
        except Exception:
            found[entry.name] = 3e7
        COUNTS.parent.mkdir(exist_ok=True)
        COUNTS.write_text(json.dumps(found))
    return found


def sweep(arguments: argparse.Namespace) -> None:
    done = load()
    todo = [entry for entry in entries() if entry.out_of_scope is None]
    todo = [entry for entry in todo if any(fnmatch.fnmatch(entry.name, p) for p in arguments.only)]
    again = set(arguments.status or [])
    todo = [
        entry
        for entry in todo
        if entry.name not in done or arguments.again or done[entry.name]["status"] in again
    ]
    count = sizes(todo)
    todo.sort(key=lambda entry: count[entry.name])
    worker = Worker(arguments.seconds, arguments.gigabytes)
    end = time.monotonic() + arguments.minutes * 60
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file, tqdm(todo) as bar:
        for entry in bar:
            if time.monotonic() > end:
                break
            bar.set_description(entry.name)
            result = {"name": entry.name, **worker.check(entry.name)}
            print(json.dumps(result), file=file, flush=True)
    worker.stop()


# --- the table --------------------------------------------------------------------------------------------------------


def write_table() -> None:
    """docs/coverage.md from the results."""
    done, all_entries = load(), list(entries())
    lines = [HEAD]
    lines += [
        "| library | in scope | tried | converted | of those tried | not tried |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    libraries = list(dict.fromkeys(entry.name.split("/")[0] for entry in all_entries))
    for library in libraries:
        mine = [e for e in all_entries if e.name.startswith(library + "/") and e.out_of_scope is None]
        tried = [
            e for e in mine if done.get(e.name, {}).get("status") in ("converted", "failed", "semantics")
        ]
        good = [e for e in tried if done[e.name]["status"] == "converted"]
        share = f"{100 * len(good) / len(tried):.1f} %" if tried else "-"
        lines.append(
            f"| {library} | {len(mine)} | {len(tried)} | {len(good)} | {share} | {len(mine) - len(tried)} |"
        )
    for library in libraries:
        mine = [e for e in all_entries if e.name.startswith(library + "/")]
        lines += ["", f"## {library}", "", "| network | parameters 2D, 3D (M) | input | output | converted |"]
        lines.append("|---|--:|--:|---|---|")
        waiting = []
        for entry in mine:
            if entry.name in done and entry.out_of_scope is None:
                lines.append(row(entry.name, done[entry.name]))
            elif entry.out_of_scope is None:
                waiting.append(entry.name.partition("/")[2])
        if waiting:
            lines += ["", f"Not run yet, {len(waiting)}: {', '.join(waiting)}"]
        outside: dict[str, list[str]] = {}
        for entry in mine:
            if entry.out_of_scope is not None:
                outside.setdefault(entry.out_of_scope, []).append(entry.name.partition("/")[2])
        if outside:
            lines += ["", "Out of scope:", ""]
            lines += [f"* {reason}: {', '.join(names)}" for reason, names in outside.items()]
    TABLE.write_text("\n".join(lines) + "\n")


HEAD = """# Coverage: which 2D networks become 3D

Written by `python benchmarks/model_coverage.py`; the checks are described at the top of that file. "Converted" means:
forward and backward as ACS on a small volume of the size given, in training mode, with the 2D network's state_dict
and gradients for the same parameters; and, as 2.5D, the 2D network's own output on a volume that repeats one image.
Weights are random. The size is the smallest of 32, 64, 96 and 128 that the 2D network itself takes. "Tried" leaves
out networks that their library does not build or run in 2D, and those that took more time or memory than the run
allowed.
"""


def row(name: str, result: dict[str, Any]) -> str:
    def millions(key: str) -> str:
        return f"{result[key] / 1e6:.1f}" if key in result else "-"

    size = f"{result['size']}³" if "size" in result else "-"
    shapes = result.get("output", [])
    output = (
        "x".join(map(str, shapes[0])) + (f" and {len(shapes) - 1} more" if len(shapes) > 1 else "")
        if shapes
        else "-"
    )
    verdict = "yes" if result["status"] == "converted" else f"{result['status']}: {result.get('reason', '')}"
    verdict = verdict.replace("|", "\\|").rstrip(": ")
    counts = f"{millions('parameters')}, {millions('parameters_3d')}"
    return f"| {name.partition('/')[2]} | {counts} | {size} | {output} | {verdict} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of names, such as 'smp/*'")
    parser.add_argument("--again", action="store_true", help="also what has a result already")
    parser.add_argument("--status", nargs="+", help="also what has a result of this status, such as failed")
    parser.add_argument("--seconds", type=float, default=120, help="limit for each network")
    parser.add_argument("--gigabytes", type=float, default=8, help="limit for each network")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after the network that ends then")
    parser.add_argument("--table", action="store_true", help="only write the table")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work()
        return
    if not arguments.table:
        sweep(arguments)
    write_table()


if __name__ == "__main__":
    main()
