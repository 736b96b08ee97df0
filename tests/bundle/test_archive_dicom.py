"""Inference over archives of DICOM series."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dbisl.utils import InputError
from tests.bundle.archives import Inference
from tests.data.make_series import CT, write_series, write_slice


@pytest.fixture
def inference(root: Path, tmp_path: Path) -> Inference:
    return Inference(root, tmp_path)


def test_files_belong_to_the_scan_they_were_made_from(tmp_path: Path, inference: Inference) -> None:
    for patient in ("p1", "p2"):
        write_series(tmp_path / "scans" / patient / "study" / "series", CT)
    inference.run(str(tmp_path / "scans" / "p1"))
    with pytest.raises(InputError, match=r"study_series_seg.nii.gz exists, and .* does not list it as a file of .*p2"):
        inference.run(str(tmp_path / "scans" / "p2"), skip_existing=True)  # has the same name
    inference.run(str(tmp_path / "scans"))
    inference.run(str(tmp_path / "scans" / "p1"))
    (tmp_path / "link").symlink_to(tmp_path / "scans" / "p1")
    inference.run(str(tmp_path / "link"), skip_existing=True)
    rows = inference.rows()
    assert [row["status"] for row in rows] == ["skipped", "segmented"] and "/link/" in rows[0]["case"]
    assert rows[0]["files"] == "study_series_seg.nii.gz;p1_study_series_seg.nii.gz"
    entropy = inference.output_dir / "p2_study_series_entropy.nii.gz"
    entropy.write_text("of another program")
    with pytest.raises(InputError, match=r"p2_study_series_entropy.nii.gz exists, and"):
        inference.run(str(tmp_path / "scans"), ("maps.json",), maps=["entropy"])
    with pytest.raises(InputError, match="output_postfix is 'entropy', the name of a map"):
        inference.run(str(tmp_path / "scans"), ("maps.json",), output_postfix="entropy")


def test_broken_series_are_reported(tmp_path: Path, inference: Inference) -> None:
    for name in ("fine", "missing_slice", "constant"):
        write_series(tmp_path / "scans" / name, np.full_like(CT, 3) if name == "constant" else CT)
    (tmp_path / "scans" / "missing_slice" / "004.dcm").unlink()
    with pytest.raises(InputError, match="2 of 3 scans failed"):
        inference.run(str(tmp_path / "scans"))
    rows = {Path(row["case"]).name: row for row in inference.rows()}
    assert rows["fine"]["status"] == "segmented"
    assert "among 21 slices at equal distances" in rows["missing_slice"]["reason"]
    assert "has the value 3 in every voxel" in rows["constant"]["reason"]
    with pytest.raises(InputError, match="is one file of a DICOM series: expected the folder that holds the series"):
        inference.run(str(tmp_path / "scans" / "missing_slice" / "003.dcm"))


def test_series_of_an_archive_are_found_at_any_depth_and_by_any_name(tmp_path: Path, inference: Inference) -> None:
    for patient in ("p1", "p2"):
        series = tmp_path / "scans" / patient / "study" / "series"
        write_series(series, CT, ending="")
        (series / "thumbnails").mkdir()
        (series / "notes.txt").write_text("no slice")
    (series / "loop").symlink_to(tmp_path / "scans")
    inference.run(str(tmp_path / "scans"))
    assert inference.statuses() == ["segmented", "segmented"]
    assert inference.images() == {f"{patient}_study_series_seg.nii.gz" for patient in ("p1", "p2")}


def test_tilted_slices_are_stacked_by_position(tmp_path: Path, inference: Inference) -> None:
    for index in range(CT.shape[2]):
        position = [-10, -20 + 0.5 * index, round(30 + 0.625 * index, 1)]  # headers round
        tags = {"ImagePositionPatient": position, "InstanceNumber": (index * 5) % CT.shape[2]}  # interleaved
        write_slice(tmp_path / "tilted" / f"{index}", CT[:, :, index].T, index, **tags)
    inference.run(str(tmp_path / "tilted"))
    affine = nib.nifti1.load(inference.output_dir / "tilted_seg.nii.gz").affine
    np.testing.assert_allclose(affine[:3, 2], [0, -0.5, 0.625], atol=3e-3)


def test_dicom_series_is_segmented_as_the_same_scan_in_nifti(tmp_path: Path, inference: Inference) -> None:
    write_series(tmp_path / "scans" / "series", CT)
    # DICOM's patient coordinates point left and posterior, NIfTI's coordinates right and anterior.
    affine = np.diag([-0.8, -0.7, 2.0, 1.0])
    affine[:3, 3] = 10, 20, 30
    nib.save(nib.nifti1.Nifti1Image(CT, affine), tmp_path / "scans" / "scan.nii.gz")
    inference.run(str(tmp_path / "scans"))
    assert inference.statuses() == ["segmented", "segmented"]
    series, scan = (nib.nifti1.load(inference.output_dir / f"{name}_seg.nii.gz") for name in ("series", "scan"))
    np.testing.assert_allclose(series.affine, affine, atol=1e-4)
    assert np.mean(np.asarray(series.dataobj) == np.asarray(scan.dataobj)) > 0.999
