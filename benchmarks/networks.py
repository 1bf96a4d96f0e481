"""The main job on real data: a patch of a brain volume through whole networks, forward and training step.

``ACSUNet``: the network of the paper's proof of concept, for segmentation. ``MobileNetV2``: torchvision's network
with its ImageNet weights, converted. Each comes in three of the same shape: from our layer, from acsconv 0.1.1
(if it can), and from ``nn.Conv3d``. The first two hold equal weights, so their outputs must agree; the third has
cubic kernels, is held to its own float64 copy and has up to three times the parameters."""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from harness import Ceiling, Format
from implementations import ACSCONV, CONV3D, LAYOUTS, ours
from measure import Candidate, Settings, first_line, measure
from peers import VOLUME_NAME, VOLUME_TERMS, PeerMissing, load_volume, mobilenet_weights
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 4  # background and three classes of intensity, see `labels_of`

# Means and deviations of ImageNet's three channels, with which torchvision's networks were trained.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# Relative errors up to which a network is published: output and loss in units of the dtype's precision, for every
# convolution that they went through. A rounding error can move the argmax of a pooling window or cross the kink of
# a ReLU, and then gradients jump (1.4e-3 seen in float32 with nn.Conv3d, 7e-7 where nothing crosses); rows of layers
# have strict limits.
VALUE_LIMIT_EPS = 4
GRADIENT_LIMITS = {"float64": 1e-6, "float32": 1e-2, "tf32": 0.1, "float16": 0.1, "bfloat16": 0.3}


def patch_of(volume: Tensor, edge: int) -> Tensor:
    """The central [edge, edge, edge] of a [D, H, W] volume.

    ValueError: it does not fit, or 4 does not divide it (the network halves twice).
    """
    if edge % 4 or edge > min(volume.shape):
        raise ValueError(
            f"--patch must be a multiple of 4 up to {min(volume.shape) // 4 * 4} for a volume of "
            f"{'x'.join(map(str, volume.shape))} voxels, got {edge}"
        )
    starts = [(size - edge) // 2 for size in volume.shape]
    return volume[tuple(slice(start, start + edge) for start in starts)].contiguous()


def labels_of(patch: Tensor) -> Tensor:
    """Targets for a realistic loss: background (0) and three equal classes of intensity. Not anatomy.

    patch [D, H, W] in [0, 1] -> int64 [D, H, W] in [0, 4).
    """
    tissue = patch[patch > 0.05]
    if tissue.numel() < 3:
        return torch.zeros_like(patch, dtype=torch.long)
    order = tissue.sort().values
    edges = torch.stack([patch.new_tensor(0.05), order[len(order) // 3], order[2 * len(order) // 3]])
    return torch.bucketize(patch, edges)


def real_patch(edge: int) -> tuple[Tensor, str, str | None]:
    """(patch [D, H, W] in [0, 1], what it is, why it is not the real volume or None)."""
    try:
        return patch_of(load_volume(), edge), f"{VOLUME_NAME}. {VOLUME_TERMS}", None
    except PeerMissing as missing:
        noise = torch.rand(edge, edge, edge, generator=torch.Generator().manual_seed(0))
        return patch_of(noise, edge), "random numbers, not a real volume", str(missing)


def with_conv3d(network: nn.Module) -> nn.Module:
    """A copy of a network in which every ACSConv is an ``nn.Conv3d`` with the same hyper-parameters."""
    from acsconv.operators import ACSConv

    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, ACSConv):
                dense = nn.Conv3d(
                    child.in_channels,
                    child.out_channels,
                    child.kernel_size,
                    child.stride,
                    child.padding,
                    child.dilation,
                    child.groups,
                    child.bias is not None,
                )
                setattr(parent, name, dense)
    return network


@contextmanager
def forced_backend(backend: str) -> Iterator[None]:
    """Layers inside take this backend of ours."""
    before = os.environ.get("ACSCONV_BACKEND")
    os.environ["ACSCONV_BACKEND"] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ["ACSCONV_BACKEND"]
        else:
            os.environ["ACSCONV_BACKEND"] = before


def _asked_for(backend: str) -> str:
    """What to force to get a backend as users get it: networks have 1x1 kernels, which ``auto`` leaves to PyTorch."""
    return "torch" if backend == "torch" else "auto"


#: name -> (network in float32 on the CPU, backend of ours to force or None)
Built = dict[str, tuple[nn.Module, str | None]]


@dataclass(frozen=True)
class Network:
    """One main job. ``build(peer, backends, notes)`` may raise ``PeerMissing``; what else is missing, it notes."""

    name: str
    purpose: str
    build: Callable[[ModuleType | None, list[str], list[str]], Built]
    input: Callable[[Tensor], Tensor]  # patch [D, H, W] in [0, 1] -> [1, C, D, H, W]
    target: Callable[[Tensor], Tensor]  # patch -> what cross_entropy compares the output with
    trains_statistics: bool = True  # else batch normalisation keeps its statistics, as in fine-tuning


def build_acsunet(peer: ModuleType | None, backends: list[str], notes: list[str]) -> Built:
    from acsconv.models.acsunet import ACSUNet

    torch.manual_seed(0)
    network = ACSUNet(CLASSES)
    networks: Built = {ours(name): (network, _asked_for(name)) for name in backends}
    networks[CONV3D] = (with_conv3d(network), None)
    if peer is not None:
        twin = peer.models.acsunet.ACSUNet(CLASSES)
        twin.load_state_dict(network.state_dict())
        networks[ACSCONV] = (twin, None)
    return networks


def build_mobilenet(peer: ModuleType | None, backends: list[str], notes: list[str]) -> Built:
    from acsconv.converters import ACSConverter, Conv3dConverter
    from vision import prepare_torchvision

    weights = torch.load(mobilenet_weights(), map_location="cpu", weights_only=True)
    prepare_torchvision()
    try:
        from torchvision.models import mobilenet_v2
    except ImportError as error:
        raise PeerMissing(f"torchvision cannot be imported: {error}.") from error

    def original() -> nn.Module:
        network = mobilenet_v2()
        network.load_state_dict(weights)
        return network

    network = ACSConverter(original())
    networks: Built = {ours(name): (network, _asked_for(name)) for name in backends}
    networks[CONV3D] = (Conv3dConverter(original(), i3d_repeat_axis=-3), None)
    if peer is not None:
        try:
            with redirect_stdout(None):  # it prints when it is imported
                converters = importlib.import_module(f"{peer.__name__}.converters")
            twin = converters.ACSConverter(original()).model
            with torch.no_grad():
                twin(torch.zeros(1, 3, 32, 32, 32))
            networks[ACSCONV] = (twin, None)
        except Exception as error:  # what the old package cannot do is a result, not the end of the run
            notes.append(f"MobileNetV2 without acsconv 0.1.1, which cannot convert it: {first_line(error)}")
    return networks


def as_image(patch: Tensor) -> Tensor:
    """[1, 3, D, H, W]: the grey patch in three channels, normalised as ImageNet's."""
    mean, deviation = (torch.tensor(values)[:, None, None, None] for values in IMAGENET)
    return ((patch - mean) / deviation).unsqueeze(0)


NETWORKS = (
    Network(
        "ACSUNet",
        f"{CLASSES} classes",
        build_acsunet,
        lambda patch: patch.expand(1, 1, *patch.shape),
        lambda patch: labels_of(patch).unsqueeze(0),
    ),
    # No volume has one of ImageNet's classes: any target serves to measure a step of training.
    Network(
        "MobileNetV2",
        "ImageNet weights, converted",
        build_mobilenet,
        as_image,
        lambda patch: torch.zeros(1, dtype=torch.long),
        # The deepest features of one patch are 8 voxels, whose statistics would amplify every rounding error.
        trains_statistics=False,
    ),
)


def _forward(network: nn.Module, x: Tensor, backend: str | None) -> dict[str, Tensor]:
    network.eval()
    with torch.no_grad(), forced_backend(backend or "auto"):
        return {"output": network(x)}


def _training(
    network: nn.Module, x: Tensor, target: Tensor, backend: str | None, statistics: bool
) -> dict[str, Tensor]:
    network.train(statistics)
    with forced_backend(backend or "auto"):
        loss = F.cross_entropy(network(x), target)
        parameters = dict(network.named_parameters())
        gradients = torch.autograd.grad(loss, list(parameters.values()))
    return {"loss": loss.detach(), "gradient": torch.cat([gradient.flatten() for gradient in gradients])}


def run(
    job: Network,
    networks: Built,
    patch: Tensor,
    passes: tuple[str, ...],
    settings: Settings,
    ceilings: dict[str, Ceiling],
    format: Format,
    layout: str,
    progress: Callable[[], None] | None = None,
) -> list[dict]:
    """Rows of a main job, as those of a layer, with the number of parameters. patch [D, H, W] in [0, 1]."""
    device, edge = settings.device, patch.shape[0]
    x = job.input(patch).to(device, format.dtype).contiguous(memory_format=LAYOUTS[layout])
    target = job.target(patch).to(device)
    # Ours comes first, and all that are not dense hold its weights.
    exact = {
        dense: _exact(networks[CONV3D if dense else next(iter(networks))][0], device, format.dtype)
        for dense in (False, True)
    }
    placed = {id(network): network.to(device, format.dtype) for network, _ in networks.values()}
    if layout == "channels_last":
        for network in placed.values():
            _to_channels_last(network)
    depth = sum(isinstance(module, nn.Conv3d) for module in networks[CONV3D][0].modules())
    value_limit = VALUE_LIMIT_EPS * depth * format.epsilon

    def bind(
        network: nn.Module, x: Tensor, backend: str | None, training: bool
    ) -> Callable[[], dict[str, Tensor]]:
        if training:
            return lambda: _training(network, x, target, backend, job.trains_statistics)
        return lambda: _forward(network, x, backend)

    rows = []
    for pass_name in passes:
        training = pass_name == "train"
        oracles = {dense: bind(exact[dense], x.double(), "torch", training) for dense in exact}
        candidates = [
            Candidate(
                name=name,
                run=bind(network, x, backend, training),
                oracle=oracles[name == CONV3D],
                limits={"output": value_limit, "loss": value_limit, "gradient": GRADIENT_LIMITS[format.name]},
            )
            for name, (network, backend) in networks.items()
        ]
        labels = {
            "case": job.name,
            "description": f"{edge}³ patch, {job.purpose}",
            "family": "network",
            "pass": pass_name,
            "dtype": format.name,
            "layout": layout,
        }
        for row in measure(candidates, settings, ceilings, labels, progress):
            network = networks[row["implementation"]][0]
            rows.append({**row, "parameters": sum(p.numel() for p in network.parameters())})
    return rows


def _to_channels_last(network: nn.Module) -> None:
    """As ``network.to(memory_format=torch.channels_last_3d)``, which fails on the 4D weights of acsconv 0.1.1."""
    for parameter in network.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)


def _exact(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A float64 copy with the weights that the network has after rounding to ``dtype``."""
    return copy.deepcopy(network).to(device, dtype).double()


def draw_figure(peer: ModuleType | None, patch: Tensor, source: str, path: Path) -> None:
    """PNG: the input and feature maps of the first layer in the three planes. Needs matplotlib.

    Rows are planes, columns the input, one channel of each of our three views, and one of ``nn.Conv3d``.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    networks = build_acsunet(peer, ["torch"], [])
    x = patch.expand(1, 1, *patch.shape).contiguous()
    layer, dense_layer = (networks[name][0].enc1.encode[0] for name in (ours("torch"), CONV3D))
    with torch.no_grad(), forced_backend("auto"):
        features, dense = layer(x)[0], dense_layer(x)[0]
    split = layer.acs_kernel_split
    panels = [("input", patch)]
    start = 0
    for view, count in zip(("axial", "coronal", "sagittal"), split, strict=True):
        panels.append((f"ACS, {view} view", _least_like(patch, features[start : start + count])))
        start += count
    panels.append(("nn.Conv3d", _least_like(patch, dense)))
    figure, axes = pyplot.subplots(3, len(panels), figsize=(2 * len(panels), 6.4))
    for row, plane in enumerate(("axial", "coronal", "sagittal")):
        for column, (title, volume) in enumerate(panels):
            axis = axes[row][column]
            middle = volume.select(row, volume.shape[row] // 2)
            axis.imshow(middle.numpy(), cmap="gray", origin="lower")
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(title, fontsize=9)
            if column == 0:
                axis.set_ylabel(f"{plane} plane", fontsize=9)
    figure.text(0.5, 0.01, source, ha="center", va="bottom", fontsize=5, wrap=True)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _least_like(image: Tensor, features: Tensor) -> Tensor:
    """Of channels [C, D, H, W] the one least correlated with image [D, H, W]: most kernels only blur."""
    flat = features.flatten(1) - features.flatten(1).mean(1, keepdim=True)
    centred = image.flatten() - image.mean()
    correlation = (flat @ centred).abs() / (flat.norm(dim=1) * centred.norm()).clamp_min(1e-12)
    return features[correlation.argmin()]
