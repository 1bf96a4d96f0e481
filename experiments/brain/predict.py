"""The brain in a whole volume, by a network of the brain extraction task.

    python -m experiments.brain predict IN.nii.gz OUT.nii.gz

writes OUT.nii.gz, 1 where the brain is, on the grid of IN.nii.gz, and OUT.png, both in three planes. T1-weighted
heads are what the networks know. IN may have any orientation and spacing; it is resampled to the network's.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from experiments.mylib.figures import three_planes
from experiments.mylib.files import read_checkpoint
from experiments.mylib.networks import to_3d
from experiments.mylib.saving import read_json

from . import volumes
from .networks import MODELS, network_2d
from .tasks import TASKS, head

ROOT = Path(__file__).resolve().parents[2]
TRAIN_IT = "Train one: python -m experiments.brain run --tasks extraction --models 'ACS, ImageNet'"
SMALLEST_WINDOW = 16  # voxels: what the network's deepest level needs


class Predictor:
    """A trained network, as a folder of ``run`` holds it: ``model.dat``, and ``network.json``, which says what it is.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or the network is of another task, or not what ``network.json`` says.
    """

    def __init__(self, checkpoint: Path, device: str = "cpu") -> None:
        weights = read_checkpoint(checkpoint, TRAIN_IT)
        note = checkpoint.with_name("network.json")
        if not note.is_file():
            raise FileNotFoundError(
                f"{note} is missing: it says which network {checkpoint.name} is. {TRAIN_IT}"
            )
        kind = read_json(note)
        if kind.get("task") != "extraction":
            raise ValueError(f"{note}: expected a network of the task extraction, got {kind.get('task')}")
        self.class_names = TASKS["extraction"].class_names
        network = network_2d(True, len(self.class_names))
        try:
            self.device, self.spacing, self.window = device, kind["spacing"], 2 * kind["edge"]
            self.network: nn.Module = to_3d(network, MODELS[kind["model"]].conv, pretrained=True)
            self.network.load_state_dict(weights)
        except (KeyError, TypeError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            raise ValueError(f"{note} does not describe the network in {checkpoint} ({reason})") from error
        self.network.to(device).eval()

    @torch.inference_mode()
    def __call__(self, volume: volumes.Volume, progress: bool = False) -> Tensor:
        """Labels uint8 [D, H, W] on the grid of ``volume.values``, by MONAI's sliding windows."""
        image = volumes.normalise(volume.at(self.spacing))
        # Nothing is added around a volume that a window holds, as nothing was in training.
        window = [max(SMALLEST_WINDOW, min(self.window, size)) for size in image.shape]
        logits = sliding_window_inference(
            image[None, None],
            window,
            1,
            self.network,
            overlap=0.5,
            mode="gaussian",
            padding_mode="replicate",
            sw_device=self.device,
            device="cpu",
            progress=progress,
        )
        return volumes.resample(logits.softmax(1)[0], volume.values.shape).argmax(0).to(torch.uint8)


def newest(root: Path = ROOT / "tmp" / "brain") -> Path:
    """The ``model.dat`` of the brain extraction that was written last.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [
        path for path in root.glob("*/extraction/*/*/model.dat") if path.with_name("network.json").is_file()
    ]
    if not found:
        raise FileNotFoundError(f"{root} has no trained network. {TRAIN_IT}")
    return max(found, key=lambda path: path.stat().st_mtime)


def predict(source: Path, target: Path, predictor: Predictor, *, progress: bool = True) -> Path:
    """Writes ``target`` and the picture beside it, each whole or not at all; returns the picture's path.

    Raises:
        FileNotFoundError, VolumeError: see :func:`experiments.brain.volumes.read` and ``write``.
    """
    volumes.check_output(target)
    if target.exists() and target.samefile(source):
        raise volumes.VolumeError(f"{target}: expected another file than the input")
    volume = volumes.read(source)
    labels = predictor(volume, progress)
    volumes.write(target, labels, volume)
    picture = target.with_name(f"{target.name.removesuffix('.gz').removesuffix('.nii')}.png")
    draw(picture, volume, {"brain": labels})
    return picture


def figure(path: Path, checkpoint: Path) -> float:
    """The head that a network of ``run`` was not trained on: its mask and the network's, in three planes.

    Returns:
        The Dice of the two on the file's own grid.
    """
    predictor = Predictor(checkpoint)
    turn = read_json(checkpoint.with_name("settings.json"))["turn"]
    volume, truth = head(turn)
    labels = predictor(volume)
    dice = 2 * float((labels * truth).sum()) / float(labels.sum() + truth.sum())
    overlays = {f"mask of {turn}": truth, f"prediction (Dice {dice:.3f})": labels}
    draw(path, volume, overlays)
    return dice


def draw(path: Path, volume: volumes.Volume, masks: dict[str, Tensor]) -> None:
    """A volume and masks on its grid in three planes, in cubic voxels, through the middle of the first mask."""
    image = volume.at(min(volume.spacing))
    shown = {title: volumes.resample(mask.float(), image.shape) > 0.5 for title, mask in masks.items()}
    found = next(iter(shown.values())).nonzero()
    centre = ((found.amin(0) + found.amax(0)) // 2).tolist() if len(found) else None
    three_planes(path, image, shown, TASKS["extraction"].class_names, centre)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m experiments.brain predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="IN.nii.gz", help="a T1-weighted head")
    parser.add_argument("target", type=Path, metavar="OUT.nii.gz", help="where the mask goes")
    parser.add_argument(
        "--checkpoint", type=Path, help="a model.dat of the task extraction; default: the newest"
    )
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="as torch's (default: %(default)s)",
    )
    parser.add_argument(
        "--progress", default=True, action=argparse.BooleanOptionalAction, help="show a bar (default: yes)"
    )
    options = parser.parse_args(arguments)
    volumes.check_output(options.target)
    predictor = Predictor(options.checkpoint or newest(), options.device)
    picture = predict(options.source, options.target, predictor, progress=options.progress)
    print(f"{options.target}\n{picture}")
