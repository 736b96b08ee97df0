"""What the model zoo runs on every bundle: its verifications and exports, by the commands of the documents."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch

from dbisl.networks import DualTaskVNet
from tests.bundle.commands import run_python

SIZES = [(16, 16, 16), (24, 40, 32), (40, 56, 40)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(DualTaskVNet(out_channels=3, features=16, levels=4).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def network(weights: Path) -> torch.nn.Module:
    network = DualTaskVNet(out_channels=3, features=16, levels=4, fused_output=True, sdm_slope=10.0).eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    return network


def command(root: Path, *arguments: object) -> str:
    """Run one of MONAI's commands in the bundle's folder; what it printed."""
    done = run_python(["-m", "monai.bundle", *arguments], root / "bundle")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


INFERENCE = ("--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json")


@pytest.fixture(scope="module")
def torchscript(root: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.ts"
    command(root, "ckpt_export", "network_def", "--filepath", path, "--ckpt_file", weights, *INFERENCE)
    return path


def test_the_network_takes_and_gives_what_the_metadata_says(root: Path) -> None:
    assert "is verified with no error" in command(root, "verify_net_in_out", "network_def", *INFERENCE)


@pytest.mark.parametrize("size", SIZES)
def test_torchscript_agrees(torchscript: Path, network: torch.nn.Module, size: tuple[int, ...]) -> None:
    image = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(torchscript)(image), network(image), atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def onnx(root: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    command(root, "onnx_export", "--args_file", "configs/onnx.yaml", "--filepath", path, "--ckpt_file", weights)
    return path


@pytest.mark.parametrize("size", SIZES)
def test_onnx_agrees(onnx: Path, network: torch.nn.Module, size: tuple[int, ...]) -> None:
    image = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(image).numpy()
    (prediction,) = onnxruntime.InferenceSession(str(onnx)).run(["pred"], {"image": image.numpy()})
    np.testing.assert_allclose(prediction, expected, atol=1e-4)


def test_exported_networks_run_the_same_inference(
    root: Path, weights: Path, torchscript: Path, onnx: Path, demo_data: Path, tmp_path: Path
) -> None:
    (scan, *_) = sorted((demo_data / "images").glob("*.nii.gz"))
    segmentations = []
    exported = "['configs/inference.json','configs/exported.json']"
    for files, path in (("configs/inference.json", weights), (exported, torchscript), (exported, onnx)):
        output = tmp_path / path.suffix
        options = ("--dataset_dir", scan, "--amp", "False", "--device", "cpu")
        places = ("--ckpt_path", path, "--output_dir", output)
        command(root, "run", "inference", "--config_file", files, *options, *places)
        (segmentation,) = output.glob("*_seg.nii.gz")
        segmentations.append(np.asarray(nib.nifti1.load(segmentation).dataobj))
    np.testing.assert_array_equal(segmentations[1], segmentations[0])
    assert np.mean(segmentations[2] != segmentations[0]) < 1e-4  # where two classes are as probable, rounding decides


def test_maps_of_an_exported_network(root: Path, torchscript: Path, demo_data: Path, tmp_path: Path) -> None:
    (scan, *_) = sorted((demo_data / "images").glob("*.nii.gz"))
    options = ("--dataset_dir", scan, "--amp", "False", "--device", "cpu", "--ckpt_path", torchscript)
    options += ("--maps", "['probability','entropy']")
    written = []
    for order in ("maps,exported", "exported,maps"):
        files = "[" + ",".join(f"'configs/{name}.json'" for name in ("inference", *order.split(","))) + "]"
        command(root, "run", "inference", "--config_file", files, *options, "--output_dir", tmp_path / order)
        (path,) = (tmp_path / order).glob("*_probability.nii.gz")
        written.append(np.asarray(nib.nifti1.load(path).dataobj))
    assert written[0].shape == (*nib.nifti1.load(scan).shape, 3)
    assert written[0].max() > 0.6  # a softmax of probabilities stays below 0.58
    np.testing.assert_allclose(written[0].sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_array_equal(*written)
