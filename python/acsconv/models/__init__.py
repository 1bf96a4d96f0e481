"""Networks made of ACS layers."""

from .acsunet import ACSUNet

__all__ = ["ACSUNet"]
