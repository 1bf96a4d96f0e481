"""Converters: a 2D network, with its weights, as a network for volumes.

    ACSConverter, SoftACSConverter, Conv2_5dConverter, Conv3dConverter     the converters of acsconv 0.1.1
    convert                                                                 the function beneath them
    rule, module_rule                                                       teach it more

``docs/converters.md`` is the manual.
"""

from .base_converter import BaseConverter
from .convert import convert
from .fold import ConversionError
from .named_converters import ACSConverter, Conv2_5dConverter, Conv3dConverter, SoftACSConverter
from .report import Report
from .rules import module_rule, rule

__all__ = [
    "ACSConverter",
    "BaseConverter",
    "Conv2_5dConverter",
    "Conv3dConverter",
    "ConversionError",
    "Report",
    "SoftACSConverter",
    "convert",
    "module_rule",
    "rule",
]
