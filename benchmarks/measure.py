"""One case, one pass, all implementations: check first, then memory, then time. Gives the rows of a result
file.

A row whose error against float64 exceeds its limit has the status ``wrong``: it is neither timed nor
averaged."""

from __future__ import annotations

import gc
import importlib
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from harness import (
    Ceiling,
    Format,
    Summary,
    clock_for,
    error_limit,
    freed_memory_kept,
    interleave,
    memory_meter,
    relative_error,
)
from implementations import (
    DENSE_ORACLE,
    ORACLE,
    Data,
    Implementation,
    draw,
    error_terms,
    run_forward,
    run_training,
)
from torch import Tensor

if TYPE_CHECKING:
    from cases import Case

PASSES = ("forward", "train")


@dataclass(frozen=True)
class Settings:
    """How to measure. ``repeats`` rounds at least, until every implementation has run for ``min_time``
    seconds, with malloc as :func:`harness.freed_memory_kept` sets it up or as it is.
    """

    device: torch.device
    repeats: int
    min_time: float
    keep_freed_memory: bool = False


@dataclass(frozen=True)
class Candidate:
    """One implementation in one pass: ``run`` gives named results, ``oracle`` and ``limits`` judge them."""

    name: str
    run: Callable[[], dict[str, Tensor]]
    oracle: Callable[[], dict[str, Tensor]]
    limits: dict[str, float]
    flops: int | None = None
    traffic: int | None = None


def first_line(error: BaseException) -> str:
    """What went wrong, for a table."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}"[:300] if text else type(error).__name__


@contextmanager
def no_fallback() -> Iterator[None]:
    """Inside, what ``auto`` warns of is an error: that it takes PyTorch on a GPU for want of a kernel."""
    importlib.import_module("acsconv_cuda.backends")._warned.clear()  # or it would warn once in a process
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="acsconv_cuda computes with plain PyTorch")
        yield


def _check(candidate: Candidate, oracle: dict[str, Tensor]) -> dict:
    """Status of one candidate by its error against float64."""
    try:
        with no_fallback():
            results = candidate.run()
    except Exception as error:  # a peer that cannot do a case is a result, not the end of the run
        return {"status": "failed", "reason": first_line(error), "error": {}, "limit": {}}
    errors = {name: relative_error(value, oracle[name]) for name, value in results.items()}
    over = [name for name, value in errors.items() if not value <= candidate.limits[name]]
    reason = (
        "; ".join(f"error of {name} {errors[name]:.1e} > {candidate.limits[name]:.1e}" for name in over)
        or None
    )
    limits = {name: candidate.limits[name] for name in errors}
    shown = {
        name: value if math.isfinite(value) else None for name, value in errors.items()
    }  # JSON has no inf
    return {"status": "wrong" if over else "ok", "reason": reason, "error": shown, "limit": limits}


def roofline_time(flops: int, traffic: int, ceilings: dict[str, Ceiling], times: dict[str, float]) -> float:
    """Seconds that the machine needs at least, by its matrix product or by its copy, whichever is slower."""
    matmul_rate = ceilings["matrix product"].work / times["matrix product"]
    copy_rate = ceilings["copy"].work / times["copy"]
    return max(flops / matmul_rate, traffic / copy_rate)


def measure(
    candidates: list[Candidate],
    settings: Settings,
    ceilings: dict[str, Ceiling],
    labels: dict,
    progress: Callable[[], None] | None = None,
) -> list[dict]:
    """Check, meter and time the candidates; one row each, beginning with ``labels``."""
    oracles: dict[int, dict[str, Tensor]] = {}
    verdicts = {}
    for candidate in candidates:
        key = id(candidate.oracle)
        if key not in oracles:
            oracles[key] = candidate.oracle()
        verdicts[candidate.name] = _check(candidate, oracles[key])
    oracles.clear()

    good = [candidate for candidate in candidates if verdicts[candidate.name]["status"] == "ok"]
    meter = memory_meter(settings.device)
    peaks = {candidate.name: meter.measure(candidate.run) for candidate in good}
    clock = clock_for(settings.device)
    functions = {candidate.name: candidate.run for candidate in good}
    functions.update((name, ceiling.function) for name, ceiling in ceilings.items())
    with freed_memory_kept() if settings.keep_freed_memory else nullcontext():
        timings = interleave(functions, clock, settings.repeats, settings.min_time, progress) if good else {}
    primary = clock.columns[0]
    best = {name: columns[primary].median for name, columns in timings.items()}

    rows = []
    for candidate in candidates:
        row = {**labels, "implementation": candidate.name, **verdicts[candidate.name]}
        row.update(
            time=None, memory=None, flops=candidate.flops, traffic=candidate.traffic, ceiling_share=None
        )
        if candidate in good:
            row["time"] = {
                column: _milliseconds(summary) for column, summary in timings[candidate.name].items()
            }
            row["memory"] = asdict(peaks[candidate.name])
            row["ceilings"] = {name: ceiling.work / best[name] for name, ceiling in ceilings.items()}
            if candidate.flops is not None and candidate.traffic is not None:
                least = roofline_time(candidate.flops, candidate.traffic, ceilings, best)
                row["ceiling_share"] = least / best[candidate.name]
        rows.append(row)
    gc.collect()
    return rows


def _milliseconds(summary: Summary) -> dict:
    values = asdict(summary)
    return {key: value if key == "samples" else value * 1e3 for key, value in values.items()}


def _bind(
    implementation: Implementation, case: Case, data: Data, training: bool
) -> Callable[[], dict[str, Tensor]]:
    """The call to be measured. A constructor that refuses the case gives a call that raises its error."""
    try:
        layer = implementation.build(case, data)
    except Exception as error:
        refusal = error

        def refuse() -> dict[str, Tensor]:
            raise refusal

        return refuse
    if training:
        return lambda: run_training(layer, data, input_gradient=not case.is_first_layer)
    return lambda: run_forward(layer, data)


def measure_case(
    case: Case,
    pass_name: str,
    implementations: list[Implementation],
    settings: Settings,
    ceilings: dict[str, Ceiling],
    format: Format,
    layout: str,
    progress: Callable[[], None] | None = None,
) -> list[dict]:
    """Rows of one layer for one pass (``forward`` or ``train``)."""
    training = pass_name == "train"
    data = draw(case, settings.device, format.dtype, layout)
    exact = data.to_float64()
    oracles = {
        dense: _bind(implementation, case, exact, training)
        for dense, implementation in ((False, ORACLE), (True, DENSE_ORACLE))
    }
    candidates = []
    for implementation in implementations:
        dense = implementation.dense
        extra = (data.dense_weight.numel() - data.weight.numel()) * data.x.element_size() if dense else 0
        candidates.append(
            Candidate(
                name=implementation.name,
                run=_bind(implementation, case, data, training),
                oracle=oracles[dense],
                limits={
                    name: error_limit(format, terms)
                    for name, terms in error_terms(case, implementation).items()
                },
                flops=case.conv3d_flops(training) if dense else case.flops(training),
                traffic=case.traffic(data.x.element_size(), training) + extra * (3 if training else 1),
            )
        )
    labels = {
        "case": case.name,
        "description": case.describe(),
        "family": case.family,
        "pass": pass_name,
        "dtype": format.name,
        "layout": layout,
    }
    return measure(candidates, settings, ceilings, labels, progress)
