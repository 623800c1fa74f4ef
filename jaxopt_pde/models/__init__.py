"""Flax networks of the papers, in the forms that are quick on every platform. Flax is imported only here."""

from .allcnn import AllCNN as AllCNN
from .batch_statistics import recompute_batch_stats as recompute_batch_stats
from .convolution import Conv as Conv
from .convolution import convolve as convolve
from .convolution import max_pool as max_pool
from .dropout import Dropout as Dropout
from .grouped_convolution import grouped_convolve as grouped_convolve
from .lenet import LeNet as LeNet
from .mlp import MLP as MLP
from .resnext import ResNeXt as ResNeXt
from .value_network import ValueNetwork as ValueNetwork

__all__ = [
    "MLP",
    "AllCNN",
    "Conv",
    "Dropout",
    "LeNet",
    "ResNeXt",
    "ValueNetwork",
    "convolve",
    "grouped_convolve",
    "max_pool",
    "recompute_batch_stats",
]
