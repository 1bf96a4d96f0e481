"""Training in less memory.

    make_memory_efficient     the switch: activations that follow from others are not stored; blocks by a budget
    ACSConvNormAct            convolution, norm and activation as one module that does so
    recomputing               the context beneath both

``docs/memory.md`` is the manual.
"""

from .estimate import MemoryEstimate, estimate, largest_cube
from .norm_act import ACSConvNormAct
from .recompute import recomputing
from .switch import Report, make_memory_efficient

__all__ = [
    "ACSConvNormAct",
    "MemoryEstimate",
    "Report",
    "estimate",
    "largest_cube",
    "make_memory_efficient",
    "recomputing",
]
