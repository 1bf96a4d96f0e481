"""ACS (axial-coronal-sagittal) convolution of volumes with 2D kernels, fused into one launch.

    acs_conv3d, soft_acs_conv3d, acs_conv_transpose3d     the operators, as functions
    ACSConvFunction                 the same as a torch.autograd.Function
    reference                       the definition, in pure PyTorch
    is_available, why_unavailable, backends

``python -m acsconv_cuda.info`` says what was built and what is missing. Layers and models are in the package
``acsconv``. Importing never fails, never builds anything and never initialises CUDA.
"""

import warnings

from . import _loader, ops, reference
from .backends import backends, is_available, why_unavailable
from .function import ACSConvFunction
from .functional import acs_conv3d, acs_conv_transpose3d, soft_acs_conv3d

__version__ = "0.2.0"

__all__ = [
    "ACSConvFunction",
    "acs_conv3d",
    "acs_conv_transpose3d",
    "backends",
    "is_available",
    "ops",
    "reference",
    "soft_acs_conv3d",
    "why_unavailable",
]

_loader.load()
_mixture = _loader.check_acsconv_package()
if _mixture is not None:
    warnings.warn(_mixture, RuntimeWarning, stacklevel=2)
