"""The import path that ``Conv3dConverter`` had in acsconv 0.1.1."""

from .named_converters import Conv3dConverter

__all__ = ["Conv3dConverter"]
