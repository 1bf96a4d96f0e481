"""Whole blocks that run twice (activation checkpointing), chosen by a budget."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

from ..operators.base_acsconv import _ACSConv
from .forward import Forward
from .recompute import Kept, Remade, recomputing

_WEIGHTED = (nn.modules.conv._ConvNd, _ACSConv, nn.Linear)


@dataclass
class Survey:
    """Bytes that one forward pass leaves for the backward pass; a block is named by its path, "" is outside of all.

    Attributes:
        plain: of each block, as the network is.
        inputs: of each block's inputs, which is what a block that runs twice stores.
        steps: (block, bytes) in the order of the forward pass, with recomputation.
    """

    plain: Counter[str] = field(default_factory=Counter)
    inputs: Counter[str] = field(default_factory=Counter)
    steps: list[tuple[str, int]] = field(default_factory=list)

    def peak(self, twice: Collection[str]) -> int:
        """The most that is stored at any time, if the blocks ``twice`` run twice.

        That is either all at the end of the forward pass, or what lies before a block, and the block itself while it
        runs again, without recomputation.
        """
        stored = most = 0
        entered: set[str] = set()
        for block, size in self.steps:
            if block not in twice:
                stored += size
            elif block not in entered:
                entered.add(block)
                most = max(most, stored + self.inputs[block] + self.plain[block])
                stored += self.inputs[block]
        return max(most, stored)


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The smallest modules with two layers of weights or more, by their path: residual blocks, levels of a U-Net."""
    found: dict[str, nn.Module] = {}
    visited: dict[nn.Module, tuple[int, bool]] = {}

    def visit(path: str, module: nn.Module) -> tuple[int, bool]:
        """How many layers of weights a module has, and whether it is or contains a block."""
        if module not in visited:  # under two names: the first counts
            children = [
                visit(f"{path}.{name}" if path else name, child) for name, child in module.named_children()
            ]
            layers = sum(child[0] for child in children)
            has_block = any(child[1] for child in children)
            is_container = isinstance(module, (nn.ModuleList, nn.ModuleDict))
            if layers >= 2 and not has_block and path and not is_container:
                found[path] = module
                has_block = True
            visited[module] = layers + isinstance(module, _WEIGHTED), has_block
        return visited[module]

    visit("", model)
    return found


def survey(model: nn.Module, example: Any, attach: Callable[[nn.Module], None]) -> Survey:
    """Runs a copy of the network on the meta device, twice; ``attach`` puts the hooks of recomputation on it."""
    trial = copy.deepcopy(model).to("meta").train()
    args, kwargs = _inputs(trial, example)
    done = Survey()
    weights = {t.untyped_storage()._cdata for t in (*trial.parameters(), *trial.buffers())}
    running = [""]

    def enter(path: str, counts: bool) -> Callable:
        def hook(module: nn.Module, inputs: tuple) -> None:
            running.append(path)
            if counts:
                done.inputs[path] += sum(t.nbytes for t in tree_leaves(inputs) if isinstance(t, Tensor))

        return hook

    def leave(module: nn.Module, inputs: tuple, output: Any) -> None:
        running.pop()

    def run(
        note: Callable[[int], None], context: Callable[[Callable[[Tensor], None]], Any], counts: bool
    ) -> None:
        seen: dict[int, Tensor] = {}  # the tensors themselves, so that no storage takes another one's place

        def count(tensor: Tensor) -> None:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights and storage._cdata not in seen:
                seen[storage._cdata] = tensor
                note(storage.nbytes())

        handles = []
        for path, block in find_blocks(trial).items():
            handles += [
                block.register_forward_pre_hook(enter(path, counts)),
                block.register_forward_hook(leave),
            ]
        with context(count):
            output = trial(*args, **kwargs)
        del output
        for handle in handles:
            handle.remove()

    def plainly(count: Callable[[Tensor], None]) -> Any:
        def pack(tensor: Tensor) -> Tensor:
            tensor = tensor.detach()
            count(tensor)
            return tensor

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)

    def recomputed(count: Callable[[Tensor], None]) -> Any:
        def watch(stored: Kept | Remade) -> None:
            for leaf in stored.leaves():
                count(leaf.tensor)

        return recomputing(watch)

    with torch.enable_grad():
        run(lambda size: done.plain.update({running[-1]: size}), plainly, True)
        attach(trial)
        run(lambda size: done.steps.append((running[-1], size)), recomputed, False)
    return done


def _inputs(model: nn.Module, example: Any) -> tuple[tuple, dict]:
    if isinstance(example, Sequence) and example and all(isinstance(n, int) for n in example):
        like = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        return (torch.empty(*example, dtype=like, device="meta"),), {}
    moved = tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, example)
    if isinstance(moved, dict):
        return (), moved
    return (moved,) if isinstance(moved, Tensor) else tuple(moved), {}


def choose(found: Survey, budget: int | float | None) -> tuple[list[str], int]:
    """The blocks that have to run twice for a budget, those that save most first, and the most that is stored then.

    Raises:
        ValueError: not even all of them would do.
    """
    chosen: list[str] = []
    peak = found.peak(chosen)
    if budget is None:
        return chosen, peak
    if isinstance(budget, float) and not 0 < budget <= 1:
        raise ValueError(f"budget: expected bytes (an int) or a part (a float up to 1.0), got {budget}")
    limit = budget * sum(found.plain.values()) if isinstance(budget, float) else budget
    savings = Counter({block: -size for block, size in found.inputs.items()})
    for block, size in found.steps:
        savings[block] += size
    del savings[""]
    for block, saving in savings.most_common():
        # One whose second run is the peak would not help.
        if peak > limit and saving > 0 and (lower := found.peak([*chosen, block])) < peak:
            chosen.append(block)
            peak = lower
    if peak > limit:
        raise ValueError(
            f"budget: {limit / 1e6:.1f} MB cannot be met for this example; the least that can be reached is "
            f"{peak / 1e6:.1f} MB"
        )
    return chosen, peak


class _Twice(Forward):
    """A module's forward that keeps its inputs alone and runs again in the backward pass."""

    def __call__(self, *args, **kwargs):
        module, forward = self.module(), self.plain()
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return forward(*args, **kwargs)

        def contexts() -> tuple[Any, Any]:
            return contextlib.nullcontext(), _statistics_of_its_own(module)

        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def run_twice(module: nn.Module) -> None:
    """Checkpoints a module by ``torch.utils.checkpoint``; its random state and running statistics are right."""
    if not isinstance(vars(module).get("forward"), _Twice):
        module.forward = _Twice(module)


class _statistics_of_its_own:
    """Context: running statistics that are changed in here are forgotten, the first run has counted.

    May be entered again: every backward pass through a graph that is retained runs the module anew.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.before: list[list[tuple[nn.Module, dict[str, Tensor | None]]]] = []

    def __enter__(self) -> None:
        norms = [
            m for m in self.module.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.training
        ]
        self.before.append([(norm, dict(norm._buffers)) for norm in norms])
        for norm in norms:
            norm._buffers.update({n: None if b is None else b.clone() for n, b in norm._buffers.items()})

    def __exit__(self, *exception) -> None:
        for norm, buffers in self.before.pop():
            norm._buffers.update(buffers)
