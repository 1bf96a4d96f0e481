"""The whole proof of concept: data, 2D pretraining, features before training, 3D trainings, the result file.

    python experiments/poc/run.py --size small      # within an hour on two CPU cores
    python experiments/poc/run.py --size full       # the original's numbers of samples and epochs, for a GPU

    # for the repository: its result file, then docs/poc.md and its figures
    python experiments/poc/run.py --size small --result benchmarks/results/experiments/poc-small.json \\
        --figures docs/figures
    python experiments/poc/report.py

Interrupt it whenever you like: the same command goes on, and repeats nothing that is finished. Each training has a
folder below ``<root>/tmp/poc``. The result file, with the trainings that are finished, is written anew after each of
them, first with all that were finished before. Every number of a size can be changed on the command line; give another
``--root`` then.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if not __package__:
    import _init_paths  # noqa: F401

from tqdm import tqdm

from experiments.mylib.networks import CONVS
from experiments.mylib.options import parse, setting
from experiments.mylib.results import read_results, write_results
from experiments.mylib.saving import finite, read_curve
from experiments.poc.generate_poc_data import generate
from experiments.poc.measure_features import measure
from experiments.poc.poc_config import (
    POCDataConfig,
    POCFeaturesConfig,
    POCShapeConfig,
    POCVoxelConfig,
    run_folder,
)
from experiments.poc.report import draw_predictions, draw_validation, main_table
from experiments.poc.train_common import run_name, summary
from experiments.poc.train_poc_shape import train_shape
from experiments.poc.train_poc_voxel import train_voxel


@dataclass
class RunConfig:
    """The proof of concept at one size; the defaults are the full one."""

    size: Literal["small", "full"] = setting("full", "whose numbers are the defaults of the others")
    edge: int = setting(48, "pixels or voxels along every edge")
    shape_train: int = setting(10000, "training images")
    shape_valid: int = setting(500, "validation images")
    shape_test: int = setting(2000, "test images")
    voxel_train: int = setting(100, "training volumes")
    voxel_valid: int = setting(20, "validation volumes")
    voxel_test: int = setting(200, "test volumes")
    noise: float = setting(0.5, "standard deviation of the noise")
    shape_epochs: int = setting(50, "epochs of the 2D network")
    voxel_epochs: int = setting(50, "epochs of the 3D networks")
    voxel_batch: int = setting(4, "volumes per step")
    voxel_milestones: tuple[float, ...] = setting(
        (), "parts of the epochs after which the rate falls to a tenth"
    )
    seeds: int = setting(3, "trainings of each kind, and random networks whose features are measured")
    convs: tuple[str, ...] = setting(CONVS, "the convolutions", CONVS)
    num_workers: int = setting(0, "processes that load samples")
    accelerator: str = setting("auto", "auto | cpu | gpu")
    precision: str = setting("32-true", "32-true | bf16-mixed | 16-mixed")
    root: str = setting("", "folder of data and trainings; by default tmp/poc-<size>")
    result: str = setting("", "result file; by default <root>/poc-<size>.json")
    figures: str = setting("", "folder of the figures; by default <root>/figures")


SIZES = {
    "full": RunConfig(),
    "small": RunConfig(
        "small",
        edge=24,
        shape_train=2000,
        shape_valid=100,
        shape_test=400,
        voxel_train=20,
        voxel_valid=8,
        voxel_test=60,
        shape_epochs=5,
        voxel_epochs=15,
        voxel_batch=2,
        voxel_milestones=(0.7,),
    ),
}


def run(config: RunConfig, *, progress: bool = True) -> Path:
    """Does what is not done yet; returns the path of the result file."""
    root = Path(config.root or f"tmp/poc-{config.size}")
    result = Path(config.result or root / f"poc-{config.size}.json")
    figures = Path(config.figures or root / "figures")
    common = {
        "noise": config.noise,
        "num_workers": config.num_workers,
        "accelerator": config.accelerator,
        "precision": config.precision,
        "save": str(root / "tmp" / "poc"),
    }
    names = ("shape_train", "shape_valid", "shape_test", "voxel_train", "voxel_valid", "voxel_test")
    data = POCDataConfig(
        **{name: getattr(config, name) for name in names},
        size=config.edge,
        noise=config.noise,
        root=str(root),
    )
    generate(data, progress=progress)

    shape = POCShapeConfig(
        **_folders(POCShapeConfig, root),
        **common,
        train_samples=config.shape_train,
        n_epochs=config.shape_epochs,
        run="2d",
    )
    trained = train_shape(shape, progress=progress)
    _say(f"2D network: {summary(trained)}")
    checkpoint = str(Path(trained["folder"]) / "model.dat")

    features = POCFeaturesConfig(
        data_test=_folders(POCVoxelConfig, root)["data_test"],
        shape_checkpoint=checkpoint,
        test_samples=config.voxel_test,
        convs=config.convs,
        seeds=config.seeds,
        noise=config.noise,
        save=common["save"],
    )
    rows = [{"kind": "shape", "seed": shape.seed, **_row(trained)}]
    rows += [{"kind": "features", **row} for row in measure(features, progress=progress)]

    trainings = [
        POCVoxelConfig(
            **_folders(POCVoxelConfig, root),
            **common,
            shape_checkpoint=checkpoint,
            train_samples=config.voxel_train,
            n_epochs=config.voxel_epochs,
            train_batch_size=config.voxel_batch,
            milestones=config.voxel_milestones,
            conv=conv,
            pretrained=pretrained,
            seed=seed,
            run=run_name(pretrained, seed),
        )
        for seed in range(config.seeds)  # so that who stops early has all kinds of some seeds
        for conv in config.convs
        for pretrained in (True, False)
    ]
    places = ("root", "result", "figures")
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in places}
    settings["trainings"] = len(trainings)
    # What is finished comes first, and is in the file from its first writing on: it never has fewer rows than before.
    finished = [training for training in trainings if (run_folder(training) / "result.json").exists()]
    voxel_rows: dict[int, dict] = {}
    environments = [trained["environment"]]
    order = sorted(range(len(trainings)), key=lambda index: trainings[index] not in finished)
    for index in tqdm(order, desc="3D networks", disable=not progress):
        training = trainings[index]
        trained = train_voxel(training, progress=False)
        name = f"{training.conv}, {'pretrained' if training.pretrained else 'random'}, seed {training.seed}"
        _say(f"{name}: {summary(trained)}")
        kind = {
            "kind": "voxel",
            "conv": training.conv,
            "pretrained": training.pretrained,
            "seed": training.seed,
        }
        voxel_rows[index] = {**kind, **_row(trained)}
        environments.append(trained["environment"])
        if len(voxel_rows) >= len(finished):
            done = [voxel_rows[key] for key in sorted(voxel_rows)]
            write_results(result, [*rows, *done], settings, environments)
    found = read_results(result)
    draw_validation(found, figures)
    draw_predictions(found, figures, root)
    _say(f"{main_table(found)}\nwrote {result}")
    return result


def _folders(config: type[POCShapeConfig | POCVoxelConfig], root: Path) -> dict[str, str]:
    return {name: str(root / getattr(config, name)) for name in ("data_train", "data_valid", "data_test")}


def _row(trained: dict) -> dict:
    """What the result file keeps of a training: what is not the same for all, and the curve."""
    curve = read_curve(Path(trained["folder"]) / "metrics.csv", "val_dice")
    kept = ("best_epoch", "epochs", "parameters", "seconds", "peak_memory")
    dice = [finite(value) for value in curve.values()]
    return {**trained["metrics"], **{name: trained[name] for name in kept}, "val_dice": dice}


def _say(line: str) -> None:
    tqdm.write(line)


def main() -> None:
    which = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    which.add_argument("--size", choices=SIZES, default="small")
    run(parse(SIZES[which.parse_known_args()[0].size], __doc__))


if __name__ == "__main__":
    main()
