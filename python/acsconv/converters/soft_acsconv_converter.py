"""The import path that ``SoftACSConverter`` had in acsconv 0.1.1."""

from .named_converters import SoftACSConverter

__all__ = ["SoftACSConverter"]
