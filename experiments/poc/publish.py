"""Makes trained weights part of the package ``acsconv``, with their card in ``docs/pretrained.md``.

    python experiments/poc/publish.py --name poc --folder tmp/poc/noise0.5/voxel/ACSConv/mine \\
        --what "what the network does" --command "how it was trained"
    python experiments/poc/publish.py        # writes the page anew

Takes the best epoch's weights and the result from a folder of ``train_poc_shape.py`` or ``train_poc_voxel.py``, and
writes ``python/acsconv/weights/<name>.safetensors`` with its entry in ``index.json``, the result as
``benchmarks/results/experiments/pretrained-<name>.json``, and the page. A name that ends in ``-2d`` is a 2D network's:
``ACSUNet(pretrained=...)`` takes all of it but the last layer.
"""

from __future__ import annotations

import hashlib
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    import _init_paths  # noqa: F401

from acsconv.weights.safetensors import write

from experiments.mylib.files import read_checkpoint
from experiments.mylib.options import parse, setting
from experiments.mylib.results import PLACE, read_results, write_results
from experiments.mylib.saving import read_json, whole, write_json

WEIGHTS = Path("python", "acsconv", "weights")
PAGE = Path("docs", "pretrained.md")
_OPTIMIZERS = {"adam": "Adam", "sgd": "SGD"}


@dataclass
class PublishConfig:
    """What is published."""

    name: str = setting("", "the name that ACSUNet(pretrained=...) takes")
    folder: str = setting("", "of the training")
    what: str = setting("", "a sentence for the card: what the network does, on which data")
    command: str = setting("", "for the card: the command that trained it")
    unlike: str = setting("", "for the card: in what the training differed from that command's, if it did")
    root: str = setting(str(Path(__file__).resolve().parents[2]), "the checkout")


def publish(config: PublishConfig) -> None:
    """Writes the weights, their entry and their result; the page is :func:`write_page`'s."""
    root, folder = Path(config.root), Path(config.folder)
    state = read_checkpoint(folder / "model.dat", "train_poc_shape.py and train_poc_voxel.py write it")
    result = read_json(folder / "result.json")
    content = write(state, {"name": config.name, "format": "pt"})
    with whole(root / WEIGHTS / f"{config.name}.safetensors") as file:
        file.write(content)
    index = root / WEIGHTS / "index.json"
    entries = read_json(index) if index.exists() else {}
    entries[config.name] = {
        "file": f"{config.name}.safetensors",
        "sha256": hashlib.sha256(content).hexdigest(),
        "classes": result["settings"]["classes"],
    }
    write_json(index, entries)
    settings = {
        "what": config.what,
        "trained_by": config.command,
        "unlike": config.unlike,
        **entries[config.name],
    }
    environment = result.pop("environment")
    write_results(root / _result(config.name), [result], settings, [environment])


def write_page(root: Path) -> None:
    """``docs/pretrained.md``, from the index and the result files."""
    with whole(root / PAGE) as file:
        file.write(page(root).encode())


def page(root: Path) -> str:
    """The text of ``docs/pretrained.md``."""
    entries = json.loads((root / WEIGHTS / "index.json").read_text())
    return _HEAD + "".join(_card(root, name, entry) for name, entry in entries.items()) + _TAIL


def _card(root: Path, name: str, entry: dict) -> str:
    result = read_results(root / _result(name))
    (row,), settings, machine = result["rows"], result["settings"], result["environment"]
    trained, metrics = row["settings"], row["metrics"]
    scores = "".join(
        f"| {label} | {metrics[f'test_dice_{label}']:.3f} | {metrics[f'test_iou_{label}']:.3f} |\n"
        for label in entry["classes"]
    )
    size = (root / WEIGHTS / entry["file"]).stat().st_size
    falls = " and ".join(map(str, trained["milestones"]))
    rate = f"rate {trained['lr']}" + (f", times {trained['gamma']} after {falls} epochs" if falls else "")
    command = f"`{settings['trained_by']}`"
    if settings["unlike"]:
        command = f"like {command}, but {settings['unlike']}"
    points = (
        f"**Training**: {command}: {row['epochs']} epochs over {trained['train_samples']:,} samples "
        f"in batches of {trained['batch_size']}, {_OPTIMIZERS[trained['optimizer']]} with {rate}, precision "
        f"{trained['precision']}, seed {trained['seed']}, torch {machine['torch']}. The weights are those of epoch "
        f"{row['best_epoch']}, the best on {trained['validation_samples']} validation samples.",
        f"**Test**, on {trained['test_samples']:,} other samples: Dice {metrics['test_dice']:.3f}, IoU "
        f"{metrics['test_iou']:.3f}, means over the classes without the background "
        f"([result file](../{_result(name).as_posix()})).",
        f"**File**: {row['parameters']:,} parameters, {size / 1e6:.1f} MB, SHA-256 `{entry['sha256']}`.",
    )
    listed = "\n".join(_wrapped(f"* {point}", "  ") for point in points)
    table = f"| class | Dice | IoU |\n|---|--:|--:|\n{scores}"
    return f"\n## `{name}`\n\n{_wrapped(settings['what'])}\n\n{listed}\n\n{table}"


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _result(name: str) -> Path:
    return PLACE / f"pretrained-{name}.json"


_HEAD = """# Pretrained models

Weights that come with the package: no network is needed to load them, and no other package.

```python
from acsconv import weights
from acsconv.models import ACSUNet

model = ACSUNet(num_classes=6, pretrained="poc")     # cone, pyramid, cube, cylinder, ball and background
model = ACSUNet(num_classes=2, pretrained="poc-2d")  # the 2D network's weights, and a last layer of your own
state = weights.load("poc-2d")                       # the state_dict, for the 2D network in experiments/poc/unet.py
```

The SHA-256 of a file is checked when it is loaded. They are trained on synthetic shapes, the data of
`experiments/poc/generate_poc_data.py` with noise 0.5, and know nothing of medicine: they are there to try transfer from
2D to 3D, to test pipelines, and as a start for volumes of noisy things with sharp borders. Inputs have one channel,
background about 0, shapes about 1. Their licence is the package's.

This page is written by `experiments/poc/publish.py` from the result files.
"""

_TAIL = """
## Publishing more

Train (`experiments/poc/README.md`), then

    python experiments/poc/publish.py --name NAME --folder FOLDER_OF_THE_TRAINING \\
        --what "What the network does, on which data." --command "python experiments/poc/train_poc_voxel.py ..."

writes the file, its entry in `python/acsconv/weights/index.json`, the result file and its card here. Commit all four.
Names of 2D networks end in `-2d`.
"""


def main(config: PublishConfig) -> None:
    if config.name:
        publish(config)
    write_page(Path(config.root))


if __name__ == "__main__":
    main(parse(PublishConfig, __doc__))
