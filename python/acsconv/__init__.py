"""ACS convolution as layers, models and converters: what networks import.

A drop-in replacement for the package of the distribution ``acsconv`` 0.1.1, computed by :mod:`acsconv_cuda`.
"""

__version__ = "0.2.0"

#: Whose package this is: the old distribution installs files of the same names (see ``python -m acsconv_cuda.info``).
__distribution__ = "acsconv-cuda"
