"""Trains every model on every turn of the tasks, and writes one result file.

    python -m experiments.brain run --save                       # the small size; docs/brain.md is made from its result
    python -m experiments.brain run --tasks extraction --models "ACS, ImageNet"
    python -m experiments.brain run --size full

Each training has a folder of its own below ``tmp/brain/<size>``; a run that was interrupted goes on where it was,
and one that is finished costs nothing. What is there is written to the result file after every training.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import lightning
from torch import nn
from tqdm import tqdm

from experiments.mylib import results
from experiments.mylib.classification import ClassificationModule
from experiments.mylib.data import VolumeDataModule
from experiments.mylib.files import read_checkpoint
from experiments.mylib.saving import write_json
from experiments.mylib.segmentation import SegmentationModule
from experiments.mylib.training import train

from .networks import MODELS, build, network_2d
from .sources import VolumeMissing
from .tasks import TASKS, Task, nearest_neighbour

ROOT = Path(__file__).resolve().parents[2]
NEIGHBOUR = "1-NN"
SLICES_PER_ITEM = 3  # of the 2D pretraining
NEIGHBOUR_GRID = (16, 4.0)  # edge in voxels and spacing in millimetres of the crops that 1-NN compares


@dataclass(frozen=True)
class Plan:
    """Of one task: ``edge`` of patches in voxels of ``spacing`` millimetres, items an epoch, epochs, items a step,
    learning rate; and epochs of the 2D pretraining, whose items are slices, three for every item in 3D."""

    edge: int
    spacing: float
    length: int
    epochs: int
    batch: int
    lr: float
    slice_epochs: int


#: The small size takes about forty minutes of one core; full has not been run.
SIZES: dict[str, dict[str, Plan]] = {
    "toy": {
        "tissue": Plan(16, 12.0, 2, 1, 2, 1e-3, 1),
        "extraction": Plan(16, 12.0, 2, 1, 2, 1e-3, 1),
        "regions": Plan(16, 6.0, 8, 1, 8, 1e-3, 1),
    },
    "small": {
        "tissue": Plan(32, 2.0, 40, 4, 2, 2e-3, 4),
        "extraction": Plan(40, 4.0, 24, 4, 2, 2e-3, 4),
        "regions": Plan(20, 3.6, 369, 4, 16, 2e-3, 4),
    },
    "full": {
        "tissue": Plan(64, 1.0, 64, 20, 2, 1e-3, 20),
        "extraction": Plan(64, 2.0, 64, 20, 2, 1e-3, 20),
        "regions": Plan(32, 2.5, 369, 40, 16, 1e-3, 40),
    },
}


@dataclass(frozen=True)
class Options:
    """The command line of ``run``."""

    size: str = field(default="small", metadata={"help": "how much is trained", "choices": tuple(SIZES)})
    tasks: tuple[str, ...] = field(default=tuple(TASKS), metadata={"help": "which", "choices": tuple(TASKS)})
    models: tuple[str, ...] = field(
        default=tuple(MODELS), metadata={"help": "which", "choices": tuple(MODELS)}
    )
    turns: tuple[str, ...] = field(default=(), metadata={"help": "of the tasks; none named: all"})
    seeds: tuple[int, ...] = field(default=(0,), metadata={"help": "a training for each"})
    folder: str = field(default="", metadata={"help": "of the trainings; empty: tmp/brain/<size>"})
    save: bool = field(
        default=False, metadata={"help": "the result among the repository's, not in the trainings' folder"}
    )
    accelerator: str = field(default="auto", metadata={"help": "as Lightning's"})
    progress: bool = field(default=True, metadata={"help": "bars"})


@dataclass(frozen=True)
class Run:
    """One training."""

    task: str
    turn: str
    seed: int
    model: str

    def folder(self, root: Path) -> Path:
        words = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in self.model)
        return root / self.task / f"{self.turn}-{self.seed}" / words


def training_root(size: str) -> Path:
    """Where the trainings of a size are, unless the command line says otherwise."""
    return ROOT / "tmp" / "brain" / size


def result_file(options: Options) -> Path:
    """The repository's, of a run of everything that is meant to be kept, or one beside the trainings."""
    return saved_result(options.size) if options.save else _root(options) / "result.json"


def saved_result(size: str) -> Path:
    """The repository's result file of a size."""
    return results.FOLDER / f"brain-{size}.json"


def _root(options: Options) -> Path:
    return Path(options.folder) if options.folder else training_root(options.size)


def run(options: Options) -> list[dict]:
    """The rows of these tasks; the result file keeps those that it has of others. See
    :func:`experiments.mylib.results.write_results`.

    Raises:
        PeerMissing: the ImageNet weights are not installed.
        VolumeMissing: volumes are not; what needs none of them has been trained.
        ValueError: a turn is of none of these tasks.
    """
    turns = [turn for task in options.tasks for turn in TASKS[task].turns]
    if unknown := [turn for turn in options.turns if turn not in turns]:
        raise ValueError(f"turns: expected some of {', '.join(turns)}, got {', '.join(unknown)}")
    root, file = _root(options), result_file(options)
    kept, settings = _others(file, options)
    rows: list[dict] = []
    missing: list[VolumeMissing] = []
    for task in options.tasks:
        # Turn by turn, so that a run that is cut off has compared all models on the turns that it has.
        runs = [
            Run(task, turn, seed, model)
            for seed, turn, model in itertools.product(options.seeds, _turns(options, task), options.models)
        ]
        try:
            rows += _baseline(options) if task == "regions" else []
            for one in tqdm(runs, desc=task, disable=not options.progress):
                rows.append(train_one(one, SIZES[options.size][task], root, options.accelerator))
                results.write_results(file, sorted(kept + rows, key=_place), settings)
        except VolumeMissing as error:
            missing.append(error)
    if missing:
        raise missing[0]
    return rows


def _others(file: Path, options: Options) -> tuple[list[dict], dict]:
    """What ``file`` has of other tasks, and the settings of these and the present ones together."""
    plans = {task: {**asdict(SIZES[options.size][task]), "seeds": options.seeds} for task in options.tasks}
    settings = {
        "size": options.size,
        "plans": plans,
        "neighbour_grid": NEIGHBOUR_GRID,
    }
    if not file.exists():
        return [], settings
    old = results.read_results(file)
    kept = [row for row in old["rows"] if row["task"] not in options.tasks]
    settings["plans"] = {**{row["task"]: old["settings"]["plans"][row["task"]] for row in kept}, **plans}
    return kept, settings


def _place(row: Mapping) -> int:
    """Of a row's task among all."""
    return list(TASKS).index(row["task"])


def train_one(one: Run, plan: Plan, root: Path, accelerator: str = "auto") -> dict:
    """One training, and before it that of the 2D network, if it begins with one; their row in the result file."""
    task, model, classes = TASKS[one.task], MODELS[one.model], len(TASKS[one.task].class_names)
    slices, pretraining = None, None
    if model.start == "slices":
        folder = Run(one.task, one.turn, one.seed, "2D").folder(root)
        lightning.seed_everything(one.seed, verbose=False)
        network = network_2d(task.is_segmentation, classes)
        pretraining = _train(one, task, plan, network, folder, accelerator, planes=True)
        slices = read_checkpoint(folder / "model.dat", f"Remove {folder} to train it again")
    lightning.seed_everything(one.seed, verbose=False)
    network = build(model, task.is_segmentation, classes, slices)
    folder = one.folder(root)
    result = _train(one, task, plan, network, folder, accelerator)
    write_json(folder / "network.json", {"task": one.task, "model": one.model, **asdict(plan)})
    return {
        **asdict(one),
        **model._asdict(),
        **{name: result["metrics"][name] for name in task.metrics},
        **{name: result[name] for name in ("parameters", "seconds", "peak_memory", "best_epoch")},
        "slice_seconds": None if pretraining is None else pretraining["seconds"],
    }


def _train(
    one: Run,
    task: Task,
    plan: Plan,
    network: nn.Module,
    folder: Path,
    accelerator: str,
    *,
    planes: bool = False,
) -> dict:
    """Trains a 3D network, or with ``planes`` the 2D one, on slices of the training volumes and nothing else."""
    split = task.split(one.turn, plan.edge, plan.spacing)
    data = VolumeDataModule(
        split.training(plan.length * (SLICES_PER_ITEM if planes else 1), planes),
        None if planes else split.validation,
        None if planes else split.test,
        batch_size=plan.batch * (SLICES_PER_ITEM if planes else 1),
        eval_batch_size=1 if task.is_segmentation else plan.batch,
        seed=one.seed,
    )
    epochs = plan.slice_epochs if planes else plan.epochs
    kind = SegmentationModule if task.is_segmentation else ClassificationModule
    module = kind(network, task.class_names, lr=plan.lr, milestones=(round(0.75 * epochs),))
    monitor = "val_dice" if task.is_segmentation else "val_accuracy"
    return train(
        module,
        data,
        folder=folder,
        epochs=epochs,
        seed=one.seed,
        monitor=None if planes else monitor,
        accelerator=accelerator,
        progress=False,
        settings={**asdict(one), "edge": plan.edge, "spacing": plan.spacing},
    )


def _baseline(options: Options) -> list[dict]:
    """1-NN on every turn of the regions. It has no seed, and nothing to validate: all other donors are neighbours."""
    return [
        {
            "task": "regions",
            "turn": turn,
            "seed": None,
            "model": NEIGHBOUR,
            "test_accuracy": nearest_neighbour(turn, *NEIGHBOUR_GRID),
        }
        for turn in _turns(options, "regions")
    ]


def _turns(options: Options, task: str) -> list[str]:
    return [turn for turn in TASKS[task].turns if turn in options.turns or not options.turns]
