"""The segmentation of a phantom lies in its true place, whatever grid the phantom was scanned on."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from scipy.spatial.transform import Rotation
from scipy.special import expit

from dbisl.utils import case_name

RADII = np.array([24.0, 19.0, 21.0])
"""Half axes of the phantom in millimetres. Its centre is the origin of the world; its edge is 1 mm wide."""
TURN = Rotation.from_euler("xyz", [20, -30, 15], degrees=True).as_matrix()
"""Orientation of the phantom."""


class Threshold(torch.nn.Module):
    """Stand-in for a network trained on the phantom: bright voxels are the first structure.

    Preprocessing gives the scan's intensities mean 0 and variance 1. With only two intensities, the bright one is then
    ``-1 / dark``, and every window has dark voxels: the threshold lies halfway between the two.
    """

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        dark = image.amin(dim=(2, 3, 4), keepdim=True)
        brighter = image - (dark - 1 / dark) / 2
        return torch.softmax(torch.cat([-4 * brighter, 4 * brighter, torch.full_like(image, -20.0)], dim=1), dim=1)


def scan(path: Path, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Write a scan of the phantom on a grid, and return the true mask on that grid."""
    voxels = np.stack(np.meshgrid(*[np.arange(size) for size in shape], indexing="ij"), axis=-1)
    world = voxels @ affine[:3, :3].T + affine[:3, 3]
    distance = (1 - np.linalg.norm(world @ TURN / RADII, axis=-1)) * RADII.mean()
    nib.save(nib.nifti1.Nifti1Image((100 * expit(4 * distance)).astype(np.float32), affine), path)
    return distance > 0


def random_grid(random: np.random.Generator, millimetres: float) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the affine and the shape of a box of about ``millimetres`` in each direction.

    Its axes have any order and direction, are oblique by up to 25 degrees, and have voxels of 0.5 to 5 mm.
    """
    spacing = np.exp(random.uniform(np.log(0.5), np.log(5), size=3))
    axes = np.eye(3)[:, random.permutation(3)] * random.choice([-1, 1], size=3)
    tilt = Rotation.from_rotvec(random.uniform(-1, 1, size=3) * np.radians(25) / np.sqrt(3)).as_matrix()
    shape = tuple(int(size) for size in np.ceil((millimetres + random.uniform(-3, 3, size=3)) / spacing))
    affine = np.eye(4)
    affine[:3, :3] = tilt @ axes * spacing
    centre = (np.array(shape) - 1) / 2 + random.uniform(-0.5, 0.5, size=3)
    affine[:3, 3] = -affine[:3, :3] @ centre
    return affine, shape


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def test_the_phantom_lands_on_the_truth_of_every_grid(root: Path, tmp_path: Path) -> None:
    scans, output, weights = tmp_path / "scans", tmp_path / "out", tmp_path / "threshold.ts"
    scans.mkdir()
    torch.jit.script(Threshold()).save(str(weights))
    random = np.random.default_rng(0)
    straight = np.eye(4)
    straight[:3, 3] = -21
    # Most boxes are about as large as the phantom and a patch; every fifth needs many windows.
    sizes = [110 if index % 5 == 4 else 43 for index in range(20)]
    grids = {f"grid_{index:02}": random_grid(random, size) for index, size in enumerate(sizes)}
    grids["untouched"] = straight, (43, 43, 43)
    truths = {name: scan(scans / f"{name}.nii.gz", *grid) for name, grid in grids.items()}
    workflow = ConfigWorkflow(
        config_file=[str(root / "bundle" / "configs" / name) for name in ("inference.json", "exported.json")],
        workflow_type="infer",
        bundle_root=str(root / "bundle"),
        logging_file=False,
        **{"dataset_dir": str(scans), "output_dir": str(output), "ckpt_path": str(weights)},
        **{"device": "cpu", "amp": False},
    )
    workflow.initialize()
    workflow.run()

    reached = {}
    for name, (affine, shape) in grids.items():
        segmentation = nib.nifti1.load(output / f"{name}_seg.nii.gz")
        assert segmentation.shape == shape
        np.testing.assert_allclose(segmentation.affine, affine, atol=1e-4)
        reached[name] = dice(np.asarray(segmentation.dataobj) == 1, truths[name])
    assert reached["untouched"] > 0.97
    assert min(reached.values()) > reached["untouched"] - 0.02, reached
    with (output / "report.csv").open(newline="") as file:
        volumes = {case_name(row["case"]): row["anterior hippocampus (ml)"] for row in csv.DictReader(file)}
    for name, (affine, _) in grids.items():
        truth = np.count_nonzero(truths[name]) * abs(np.linalg.det(affine[:3, :3])) / 1000
        assert float(volumes[name]) == pytest.approx(truth, rel=0.05)
