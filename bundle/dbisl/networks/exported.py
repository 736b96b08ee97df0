"""Networks that were exported, in the place of the one that was trained."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from monai.utils import OptionalImportError, optional_import
from torch import nn

from dbisl.utils.errors import InputError


class OnnxNetwork(nn.Module):
    """An ONNX file as a module: ``B x C x *spatial`` to its first answer, float32, on the device of the input.

    ONNX Runtime computes it, on a CUDA device where the input is on one and the runtime can, else on the CPU.

    Args:
        path: of the file, whose first input is the image.
        device: on which the inputs will be.
    """

    def __init__(self, path: str, device: torch.device | str) -> None:
        super().__init__()
        runtime, _ = optional_import("onnxruntime")
        wanted = ["CUDAExecutionProvider"] if torch.device(device).type == "cuda" else []
        providers = [name for name in (*wanted, "CPUExecutionProvider") if name in runtime.get_available_providers()]
        self.session = runtime.InferenceSession(path, providers=providers)
        self.input = self.session.get_inputs()[0].name

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        (answer, *_) = self.session.run(None, {self.input: image.float().cpu().numpy()})
        return torch.from_numpy(answer).to(image.device)


def load_exported(path: str, device: torch.device | str) -> nn.Module:
    """The network of a TorchScript (``.ts``) or ONNX (``.onnx``) file, on a device.

    Raises:
        InputError: when there is no such file, it has another ending, or no network in it.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path} does not exist: expected an exported network (ckpt_path).")
    if Path(path).suffix not in (".ts", ".onnx"):
        raise InputError(f"{path} is no exported network: expected the ending .ts (TorchScript) or .onnx.")
    try:
        if Path(path).suffix == ".onnx":
            return OnnxNetwork(path, device)
        return torch.jit.load(path, map_location=device).eval()
    except OptionalImportError:
        raise InputError(f"{path} needs the package onnxruntime: install it, or export to TorchScript.") from None
    except Exception as error:  # each runtime has types of its own for a broken file
        reason = (str(error).splitlines() or [""])[0][:100]
        raise InputError(f"{path} cannot be read ({reason}): expected a complete exported network.") from None
