"""The import path that ``Conv2_5dConverter`` had in acsconv 0.1.1."""

from .named_converters import Conv2_5dConverter

__all__ = ["Conv2_5dConverter"]
