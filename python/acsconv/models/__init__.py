"""Networks made of ACS layers: ``resnet``, ``densenet``, ``vgg``, ``convnext``, ``acsunet`` and ``encoder_decoder``.

Every family has a classifier (``Cls...``) and a segmentation network (``FCN...``); ``pretrained`` says which weights
they take.
"""

from . import convnext, densenet, resnet, vgg
from .acsunet import ACSUNet
from .encoder_decoder import EncoderDecoder

__all__ = ["ACSUNet", "EncoderDecoder", "convnext", "densenet", "resnet", "vgg"]
