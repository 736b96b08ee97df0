"""The NIfTI files that inference writes: format, names, and maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImage

from dbisl.transforms import SaveMapsd, ScanLayout, WholeNibabelWriter
from dbisl.utils import InputError

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def image(shape: tuple[int, ...], path: str = "scan.nii.gz") -> MetaTensor:
    """Return an image of one or more channels, ``C x *spatial``, as MONAI loads it."""
    meta = {"filename_or_obj": path, "spatial_shape": list(shape[1:])}
    return MetaTensor(torch.ones(shape), affine=torch.from_numpy(AFFINE), meta=meta)


def save(folder: Path, data: MetaTensor) -> Any:
    """Save an image with the writer and return the NIfTI image that is in the file."""
    layout = ScanLayout(str(folder), "seg")
    options = {"folder_layout": layout, "writer": WholeNibabelWriter, "resample": False, "print_log": False}
    SaveImage(**options)(data)
    return nib.nifti1.load(layout.path(data.meta["filename_or_obj"]))


@pytest.mark.parametrize(
    ("shape", "in_file"),
    [
        pytest.param((1, 20, 24), (20, 24), id="plane"),
        pytest.param((1, 20, 24, 1), (20, 24, 1), id="one slice"),
        pytest.param((1, 1, 24, 5), (1, 24, 5), id="one column"),
        pytest.param((1, 20, 24, 5), (20, 24, 5), id="volume"),
        pytest.param((3, 20, 24, 1), (20, 24, 1, 3), id="channels"),
    ],
)
def test_all_axes_of_a_scan_are_kept(tmp_path: Path, shape: tuple[int, ...], in_file: tuple[int, ...]) -> None:
    assert save(tmp_path, image(shape)).shape == in_file


def test_files_have_the_affine_and_the_unit_of_their_scan(tmp_path: Path) -> None:
    saved = save(tmp_path, image((1, 6, 5, 4)))
    np.testing.assert_allclose(saved.affine, AFFINE)
    assert saved.header.get_xyzt_units()[0] == "mm"


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, image((1, 6, 5, 4)))
    path = tmp_path / "scan_seg.nii.gz"
    before = path.read_bytes()

    def full(image: Any, filename: Any, **_: Any) -> None:
        Path(filename).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(RuntimeError, match="no space left"):
        save(tmp_path, image((1, 6, 5, 4)))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("scan", "name"),
    [
        ("data/scan.nii.gz", "scan_seg.nii.gz"),
        ("data/SCAN.NII", "SCAN_seg.nii.gz"),
        ("data/1.2.840.1.nii.gz", "1.2.840.1_seg.nii.gz"),
        ("data/1.2.840.2", "1.2.840.2_seg.nii.gz"),
        ("data/patient/study/1.2", "patient_study_1.2_seg.nii.gz"),
        ("elsewhere/patient/scan.nii", "scan_seg.nii.gz"),
    ],
)
def test_names_of_segmentations(tmp_path: Path, scan: str, name: str) -> None:
    layout = ScanLayout("out", "seg", dataset_dir=str(tmp_path / "data"))
    assert layout.path(str(tmp_path / scan)) == Path("out", name)


def test_names_full_of_dots_are_kept(tmp_path: Path) -> None:
    for index in (1, 2):
        save(tmp_path, image((1, 6, 5, 4), f"1.2.840.{index}.nii.gz"))
    assert {path.name for path in tmp_path.iterdir()} == {"1.2.840.1_seg.nii.gz", "1.2.840.2_seg.nii.gz"}


def test_each_scan_may_have_a_folder(tmp_path: Path) -> None:
    layout = ScanLayout(str(tmp_path), "seg", separate_folder=True)
    assert layout.path("scan.nii.gz") == tmp_path / "scan" / "scan_seg.nii.gz"
    assert not (tmp_path / "scan").exists()
    assert layout.filename("scan.nii.gz") == str(tmp_path / "scan" / "scan_seg.nii.gz")
    assert (tmp_path / "scan").is_dir()


def test_other_postfixes() -> None:
    layout = ScanLayout("out", "seg")
    assert layout.path("scan.nii.gz", "sdm") == layout.with_postfix("sdm").path("scan.nii.gz")
    assert layout.path("scan.nii.gz", "") == Path("out", "scan.nii.gz")


def test_wrong_folders_and_postfixes() -> None:
    with pytest.raises(InputError, match="output_dir is None: expected the path of a folder"):
        ScanLayout(None, "seg")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"output_postfix is '../seg': expected the end of a file name, without '/'"):
        ScanLayout("out", "../seg")


def test_chosen_maps_are_written_as_float32(tmp_path: Path) -> None:
    data = {"pred": image((3, 6, 5, 4)), "pred_entropy": image((1, 6, 5, 4)).half(), "pred_sdm": image((3, 6, 5, 4))}
    saved = SaveMapsd(["probability", "entropy"], ScanLayout(str(tmp_path), "seg"))(data)
    assert saved == data
    shapes = {}
    for path in tmp_path.iterdir():
        written = nib.nifti1.load(path)
        assert written.get_data_dtype() == np.float32
        shapes[path.name] = written.shape
    assert shapes == {"scan_probability.nii.gz": (6, 5, 4, 3), "scan_entropy.nii.gz": (6, 5, 4)}


@pytest.mark.parametrize("maps", [["entropies"], "entropy", [], [["entropy"]], None])
def test_wrong_maps(maps: Any) -> None:
    with pytest.raises(
        InputError, match=r"expected a list of some of \['probability', 'sdm', 'entropy', 'disagreement'\]"
    ):
        SaveMapsd(maps, ScanLayout("out", "seg"))


def test_maps_of_two_tasks_need_two_predictions() -> None:
    layout = ScanLayout("out", "seg")
    with pytest.raises(InputError, match=r"some of \['probability', 'entropy'\]; the others need the predictions of"):
        SaveMapsd(["probability", "sdm"], layout, dual_task=False)
    SaveMapsd(["probability", "entropy"], layout, dual_task=False)
