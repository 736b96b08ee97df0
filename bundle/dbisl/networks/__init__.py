"""Networks with one encoder and a decoder for each task, and the weights that belong to them."""

from dbisl.networks.dual_task import DualTaskNetwork
from dbisl.networks.ensembles import EnsembleNetwork, ensemble
from dbisl.networks.exported import OnnxNetwork, load_exported
from dbisl.networks.layers import InstanceNorm
from dbisl.networks.segresnet import DualTaskSegResNet
from dbisl.networks.vnet import DualTaskVNet, VNetDecoder, VNetEncoder
from dbisl.networks.weights import check_checkpoint

__all__ = [
    "DualTaskNetwork",
    "DualTaskSegResNet",
    "DualTaskVNet",
    "EnsembleNetwork",
    "InstanceNorm",
    "OnnxNetwork",
    "VNetDecoder",
    "VNetEncoder",
    "check_checkpoint",
    "ensemble",
    "load_exported",
]
