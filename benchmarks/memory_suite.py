"""The memory suite: training steps of whole networks at growing volumes, until memory runs out.

Every network and implementation runs in a process of its own, which this file is the program of, under a limit: on
a CPU one that the system enforces (RLIMIT_DATA, beyond what the process holds when it starts to measure), on a GPU
a share of the card. The process prints one line of JSON per size; the first size that fails is its last."""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from harness import memory_meter, summarize
from implementations import ACSCONV, CONV3D, ours
from measure import first_line
from memory_networks import CLASSES, NETWORKS, MemoryNetwork
from peers import load_acsconv
from result_file import MEMORY, OUT_OF_MEMORY
from torch import Tensor, nn
from torch.nn import functional as F

from acsconv_cuda.out_of_memory import is_out_of_memory

EFFICIENT = ", memory-efficient"  # follows the name of ours
LIMIT = {"cpu": 2 << 30, "cuda": None}  # bytes; None: all of the card
GROWTH = {"cpu": 1, "cuda": 2}  # of the steps between sizes

# Larger blocks are mapped each by itself and given back when freed. By default glibc keeps blocks of up to 32 MiB, in
# pieces that later ones may not fit into: up to twice the memory at small volumes, by chance.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}

# Relative errors against ours, far below any fault. What rounding makes of ReLU and batch norm on noise in float32: up
# to 8e-3 of FCN ResNet-18's gradient at 40³, between ours and acsconv 0.1.1 as between either and float64.
LIMITS = {"loss": 1e-3, "gradient": 5e-2}


def implementations(device: torch.device, backends: list[str], with_peer: bool) -> list[str]:
    """Names of what is compared: ours by the backend that ``auto`` takes, first."""
    fused = ours(next(iter(backends)))
    return [fused, fused + EFFICIENT, *([ACSCONV] if with_peer else []), CONV3D]


def build(network: MemoryNetwork, implementation: str) -> nn.Module:
    """A network in training mode; those that are not of ``nn.Conv3d`` hold the same weights."""
    from acsconv.memory import make_memory_efficient
    from acsconv.operators import ACSConv

    torch.manual_seed(0)
    if implementation == CONV3D:
        return network.build(nn.Conv3d).train()
    model = network.build(ACSConv)
    if implementation == ACSCONV:
        twin = network.build(load_acsconv().operators.ACSConv)
        twin.load_state_dict(model.state_dict())
        return twin.train()
    if implementation.endswith(EFFICIENT):
        make_memory_efficient(model)
    return model.train()


class Training:
    """Steps of Adam on one volume of noise. ``run()``: loss and :func:`sketch` of the first, seconds of the others."""

    def __init__(
        self, network: MemoryNetwork, model: nn.Module, edge: int, device: torch.device, steps: int
    ) -> None:
        self.model, self.device, self.steps = model, device, steps
        self.shape = (1, network.channels, edge, edge, edge)

    def run(self) -> tuple[float, list[float], list[float]]:
        generator = torch.Generator().manual_seed(0)
        model = copy.deepcopy(self.model).to(self.device)
        optimizer = torch.optim.Adam(model.parameters())
        volume = torch.rand(self.shape, generator=generator).to(self.device)
        target = torch.randint(CLASSES, (1, *self.shape[2:]), generator=generator).to(self.device)
        loss = self._step(model, optimizer, volume, target)
        gradient = sketch(model)
        times = []
        for _ in range(self.steps):
            start = time.perf_counter()
            self._step(model, optimizer, volume, target)
            times.append(time.perf_counter() - start)
        return loss, gradient, times

    @staticmethod
    def _step(model: nn.Module, optimizer: torch.optim.Optimizer, volume: Tensor, target: Tensor) -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(volume), target)
        loss.backward()
        optimizer.step()
        return loss.item()  # waits for the device


def sketch(model: nn.Module) -> list[float]:
    """The gradient in few numbers: of every parameter its product with noise, which is the same in all processes."""
    generator = torch.Generator().manual_seed(0)
    noise = (torch.randn(parameter.numel(), generator=generator) for parameter in model.parameters())
    return [torch.dot(p.grad.cpu().flatten(), other).item() for p, other in zip(model.parameters(), noise)]


@contextlib.contextmanager
def limited(limit: int | None, device: torch.device) -> Iterator[None]:
    """Inside, not more than ``limit`` bytes can be had beyond what the process holds now."""
    if limit is None:
        yield
        return
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
        yield
        return
    status = Path("/proc/self/status").read_text()
    held = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData:")) * 1024
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (held + limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def measure_sizes(
    network: MemoryNetwork,
    implementation: str,
    edges: Iterator[int],
    device: torch.device,
    limit: int | None,
    steps: int,
) -> Iterator[dict]:
    """One object per edge: status, and what ``Training.run`` gives and the peak memory, or why it failed."""
    model = build(network, implementation)
    # What libraries load, and kernels keep, from their first step on is not counted.
    Training(network, model, network.first, device, 0).run()
    meter = memory_meter(device)
    with limited(limit, device):
        for edge in edges:
            results: list = []
            training = Training(network, model, edge, device, steps)
            try:
                peak = meter.measure(lambda run=training.run, results=results: results.append(run()))
            except (RuntimeError, MemoryError) as error:
                cause = f"{OUT_OF_MEMORY}: " if is_out_of_memory(error) else ""
                yield {"edge": edge, "status": "failed", "reason": cause + first_line(error)}
                return
            ((loss, gradient, seconds),) = results
            found = {"loss": loss, "gradient": gradient, "seconds": seconds, "memory": asdict(peak)}
            yield {"edge": edge, "status": "ok", **found}


def sizes(network: MemoryNetwork, device: torch.device) -> Iterator[int]:
    """Edges from the first on, without end."""
    edge = network.first * (1 if device.type == "cpu" else 2)
    while True:
        yield edge
        edge += network.step * GROWTH[device.type]


def run_child(arguments: list[str], report: Callable[[dict], None]) -> str | None:
    """Runs this file as a program; ``report`` is called with each of its objects. Why it ended before time, or None."""
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    environment = MALLOC | os.environ
    # To a file: a second pipe would be read when the first ends, and one that is full stops the process before that.
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        pipes = {"stdout": subprocess.PIPE, "stderr": errors, "text": True}
        with subprocess.Popen(command, env=environment, **pipes) as child:
            for line in child.stdout:
                report(json.loads(line))
        if not child.returncode:
            return None
        errors.seek(0)
        last = errors.read().strip().splitlines()[-1:] or [""]
        return f"the process ended with {child.returncode}: {last[0]}"[:300]


def measure_all(
    device: torch.device,
    names: list[str],
    limit: int | None,
    steps: int,
    threads: int,
    most: int | None,
    progress: Callable[[str, int | None], None],
) -> list[dict]:
    """Rows of the suite, grouped by network and size.

    ``progress`` is called with the network and implementation at work and the edge that is done, None at the end of a
    process. ``most``: the largest edge tried, if it is not memory that shall end the growth.
    """
    rows = []
    for network in NETWORKS.values():
        found: dict[str, list[dict]] = {}
        for name in names:
            title = f"{network.name}, {name}"
            objects = found.setdefault(name, [])

            def note(item: dict, objects: list[dict] = objects, title: str = title) -> None:
                objects.append(item)
                progress(title, item["edge"])

            arguments = [network.name, name, "--device", device.type, "--steps", str(steps)]
            arguments += ["--threads", str(threads), "--limit", str(limit or 0), "--most", str(most or 0)]
            failure = run_child(arguments, note)
            if failure is not None:
                last = objects[-1]["edge"] if objects else 0
                edge = next(edge for edge in sizes(network, device) if edge > last)
                objects.append({"edge": edge, "status": "failed", "reason": failure})
            progress(title, None)
        rows += _rows(network, found, limit)
    return rows


def _rows(network: MemoryNetwork, found: dict[str, list[dict]], limit: int | None) -> list[dict]:
    right = {item["edge"]: item for item in found[next(iter(found))] if item["status"] == "ok"}
    rows = []
    for edge in sorted({item["edge"] for items in found.values() for item in items}):
        for name, items in found.items():
            item = next((item for item in items if item["edge"] == edge), None)
            if item is None:
                continue
            row = {
                "case": f"{network.name} {edge}",
                "description": f"{edge}³, {network.purpose}",
                "family": MEMORY,
                "pass": "train",
                "dtype": "float32",
                "layout": "contiguous",
                "implementation": name,
                "status": item["status"],
                "reason": item.get("reason"),
                "time": None,
                "memory": None,
                "error": {},
                "limit": {},
                "flops": None,
                "traffic": None,
                "ceiling_share": None,
                "network": network.name,
                "edge": edge,
                "memory_limit": limit,
            }
            if item["status"] == "ok":
                seconds = asdict(summarize(item["seconds"]))
                wall = {key: value if key == "samples" else value * 1e3 for key, value in seconds.items()}
                row.update(time={"wall": wall}, memory=item["memory"])
                if name != CONV3D and edge in right:
                    errors = _errors(item, right[edge])
                    shown = {name: value if math.isfinite(value) else None for name, value in errors.items()}
                    row.update(error=shown, limit=LIMITS)
                    reasons = [
                        f"error of {quantity} {error:.1e} > {LIMITS[quantity]:.1e}"
                        for quantity, error in errors.items()
                        if not error <= LIMITS[quantity]
                    ]
                    if reasons:
                        row.update(status="wrong", reason=", ".join(reasons), time=None, memory=None)
            rows.append(row)
    return rows


def _errors(item: dict, right: dict) -> dict[str, float]:
    """Relative errors of loss and gradient, the latter of the sketch as a vector, which is about that of the whole."""
    far = math.dist(item["gradient"], right["gradient"]) / math.hypot(*right["gradient"])
    return {"loss": abs(item["loss"] - right["loss"]) / abs(right["loss"]), "gradient": far}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="One network and implementation of the memory suite.")
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("implementation")
    parser.add_argument("--edges", type=int, nargs="+", help="default: growing until memory runs out")
    parser.add_argument("--most", type=int, default=0, help="the largest edge; 0: no such limit")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--limit", type=int, default=0, help="bytes; 0: no limit")
    parser.add_argument("--steps", type=int, default=2, help="steps timed, behind one that is not")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = False  # the rows say float32
    network, device = NETWORKS[options.network], torch.device(options.device)
    edges = iter(options.edges) if options.edges else sizes(network, device)
    edges = itertools.takewhile(lambda edge: not options.most or edge <= options.most, edges)
    for item in measure_sizes(
        network, options.implementation, edges, device, options.limit or None, options.steps
    ):
        print(json.dumps(item), flush=True)


if __name__ == "__main__":
    main()
