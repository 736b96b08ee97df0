"""Exported networks, TorchScript or ONNX, that run in place of the trained one."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from monai.utils import OptionalImportError, optional_import
from torch import nn

from dbisl.utils.errors import InputError
from dbisl.utils.files import first_line


class OnnxNetwork(nn.Module):
    """Network of an ONNX file, computed by ONNX Runtime.

    It runs on a CUDA device if the inputs are on one and ONNX Runtime supports it, and on the CPU otherwise.

    Args:
        path: the ONNX file. Its first input is the image.
        device: the device that the inputs will be on.
    """

    def __init__(self, path: str, device: torch.device | str) -> None:
        super().__init__()
        runtime, _ = optional_import("onnxruntime")
        wanted = ["CUDAExecutionProvider"] if torch.device(device).type == "cuda" else []
        providers = [name for name in (*wanted, "CPUExecutionProvider") if name in runtime.get_available_providers()]
        self.session = runtime.InferenceSession(path, providers=providers)
        self.input = self.session.get_inputs()[0].name

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the first output of the file for a batch.

        Args:
            image: ``B x C x *spatial``, on any device.

        Returns:
            The output in float32, on the device of ``image``.
        """
        (output, *_) = self.session.run(None, {self.input: image.float().cpu().numpy()})
        return torch.from_numpy(output).to(image.device)


def load_exported(path: str, device: torch.device | str) -> nn.Module:
    """Load an exported network, in evaluation mode.

    Args:
        path: a TorchScript file (``.ts``) or an ONNX file (``.onnx``).
        device: the device to run on.

    Raises:
        InputError: if there is no such file, it has another extension, or it does not hold a network; if an ONNX file
            is given and the package onnxruntime is not installed; if a list of files is given.
    """
    if isinstance(path, (list, tuple)):
        raise InputError(f"ckpt_path is a list of {len(path)} files: expected one file for an exported network.")
    if not os.path.isfile(path):
        raise InputError(f"{path} does not exist: expected an exported network (ckpt_path).")
    if Path(path).suffix not in (".ts", ".onnx"):
        raise InputError(f"{path} is not an exported network: expected the extension .ts (TorchScript) or .onnx.")
    try:
        if Path(path).suffix == ".onnx":
            return OnnxNetwork(path, device)
        return torch.jit.load(path, map_location=device).eval()
    except OptionalImportError:
        raise InputError(f"{path} needs the package onnxruntime: install it, or export to TorchScript.") from None
    except Exception as error:  # each runtime has its own types for a broken file
        raise InputError(
            f"{path} cannot be read ({first_line(error)}): expected a complete exported network."
        ) from None
