"""The configs of public data sets train, evaluate and segment on small made scans of that kind."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser

from tests.bundle.commands import TINY, Run

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"


def write_scans(root: Path, cases: int, shape: tuple[int, ...], affine: np.ndarray, classes: int) -> None:
    """Bright blocks in noise; zeros outside of a box, as outside of a head."""
    random = np.random.default_rng(0)
    for number in range(cases):
        label = np.zeros(shape, np.uint8)
        for value in range(1, classes):
            label[4 + 4 * value : 8 + 4 * value, 6:14, 2:-2] = value
        image = np.zeros(shape, np.float32)
        image[2:-2, 2:-2] = (40 * label + random.normal(60, 10, shape))[2:-2, 2:-2]
        name = f"patient{number // 2}_{'es' if number % 2 else 'ed'}.nii.gz"
        for folder, voxels in (("images", image), ("labels", label)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            if folder == "images" or number < 4 or number >= cases - 2:
                nib.save(nib.Nifti1Image(voxels, affine), root / folder / name)
        with (root / ("val.list" if number >= cases - 2 else "train.list")).open("a") as file:
            file.write(f"{name}\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "patch", "shape", "affine"),
    [
        ("pancreas", [32, 32, 32], (40, 36, 30), np.diag([-0.8, -0.9, 1.2, 1])),
        ("brats2019", [32, 32, 32], (40, 38, 36), np.diag([-1, -1, 1, 1])),
        ("acdc", [32, 32, 4], (44, 40, 7), np.diag([1.4, 1.4, 8, 1])),
    ],
)
def test_a_data_set_trains_evaluates_and_segments(
    tmp_path: Path, run_bundle: Run, name: str, patch: list[int], shape: tuple[int, ...], affine: np.ndarray
) -> None:
    data, overlay = tmp_path / "data", f"configs/datasets/{name}.yaml"
    classes = len(ConfigParser.load_config_file(CONFIGS / "datasets" / f"{name}.yaml")["class_names"])
    write_scans(data, 8, shape, affine, classes)
    options = {"ckpt_dir": tmp_path, "output_dir": tmp_path / "out", "patch_size": patch, "levels": 4}
    training = {**options, **TINY, "epochs": 1, "dataset_dir": data, "num_labeled": 4}
    done = run_bundle("training", ["configs/train.json", overlay], **training)
    assert done.returncode == 0, done.stdout + done.stderr
    files = ["configs/train.json", overlay, "configs/evaluate.json"]
    done = run_bundle("evaluating", files, **options, features=4, dataset_dir=data)
    assert done.returncode == 0, done.stdout + done.stderr
    segmenting = {**options, "features": 4, "dataset_dir": data / "images", "ckpt_path": tmp_path / "model.pt"}
    del segmenting["ckpt_dir"]
    done = run_bundle("inference", ["configs/inference.json", overlay], **segmenting)
    assert done.returncode == 0, done.stdout + done.stderr
    written = list((tmp_path / "out").glob("*_seg.nii.gz"))
    assert len(written) == 8
    for path in written:
        image = nib.load(path)
        assert image.shape == shape and np.allclose(image.affine, affine)


@pytest.mark.parametrize("name", ["pancreas", "brats2019"])
def test_the_steps_of_the_grid_are_those_of_training(name: str) -> None:
    """An overlay with intensities of its own repeats the other steps; they must not fall behind."""
    own = ConfigParser.load_config_file(CONFIGS / "datasets" / f"{name}.yaml")["image_transforms"]
    of_training = ConfigParser.load_config_file(CONFIGS / "train.json")["image_transforms"]
    grid = [step for step in of_training if "keys" in step and str(step["keys"]).startswith("@")]
    assert len(grid) == 3 and all(step in own for step in grid)
