"""The import path that ``ACSConverter`` had in acsconv 0.1.1."""

from .named_converters import ACSConverter

__all__ = ["ACSConverter"]
