"""``scripts/prepare.py``: what it refuses, what it crops, and that one bad case does not stop the others."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import fire
import numpy as np
import pytest

from dbisl.utils import InputError
from scripts.prepare import prepare
from scripts.preparing.forms import FORMS
from tests.scripts.preparing.sources import (
    AFFINE,
    brats,
    by_place,
    check,
    image,
    label,
    nnunet,
    voxels_of,
    write,
    write_hdf5,
    write_series,
)


def test_a_missing_channel_is_named_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = nnunet(tmp_path / "raw", {"background": 0, "organ": 1}, (1,))
    (source / "imagesTr" / "b_0001.nii.gz").unlink()
    with pytest.raises(SystemExit) as caught:
        prepare(str(source), str(tmp_path / "data"))
    assert caught.value.code == 1
    assert f"{source / 'imagesTr' / 'b'} has the channels _0000: expected 2" in capsys.readouterr().err
    check(tmp_path / "data", 1, channels=2)


def test_channels_on_different_grids_are_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = brats(tmp_path / "MICCAI")
    write(source / "HGG/BraTS19_A/BraTS19_A_t2.nii.gz", image(3), AFFINE @ np.diag([1.5, 1, 1, 1]))
    with pytest.raises(SystemExit):
        prepare(str(source), str(tmp_path / "data"))
    assert "BraTS19_A: Channel 3 has the shape" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "data" / "images").iterdir()] == ["BraTS19_B.nii.gz"]


def test_cropping_keeps_voxels_in_their_place(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "raw", {"background": 0, "organ": 1}, (1,))
    for path in (source / "imagesTr").glob("b_*"):
        path.unlink()
    prepare(str(source), str(tmp_path / "whole"), channels="T1")
    prepare(str(source), str(tmp_path / "cut"), channels="T1", crop_margin=[0.8, 0.7, None])
    assert voxels_of(tmp_path / "cut" / "labels" / "a.nii.gz").shape == (4, 5, 7)
    assert by_place(tmp_path / "cut" / "labels" / "a.nii.gz") == by_place(tmp_path / "whole" / "labels" / "a.nii.gz")
    whole = by_place(tmp_path / "whole" / "images" / "a.nii.gz")
    cut = by_place(tmp_path / "cut" / "images" / "a.nii.gz")
    assert cut.items() <= whole.items() and len(cut) > 100


def test_a_broken_file_is_named_and_leaves_no_half_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = brats(tmp_path / "MICCAI")
    path = source / "LGG/BraTS19_B/BraTS19_B_t1.nii.gz"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(SystemExit):
        prepare(str(source), str(tmp_path / "data"))
    errors = capsys.readouterr().err
    assert f"BraTS19_B: {path} cannot be read" in errors
    assert [path.name for path in (tmp_path / "data").rglob("*_B*")] == []
    check(tmp_path / "data", 1, classes=4, channels=4)


def test_what_is_refused(tmp_path: Path) -> None:
    source, output = brats(tmp_path / "MICCAI"), tmp_path / "data"

    def refusal(**arguments: Any) -> str:
        with pytest.raises(InputError) as caught:
            prepare(**{"source": str(source), "output_dir": str(output), **arguments})
        return str(caught.value)

    assert "expected one of the forms\n  nnunet:" in refusal(form="help")
    assert "does not fit acdc" in refusal(form="acdc")
    assert "is not a folder" in refusal(source=str(tmp_path / "nothing"))
    assert refusal(channels="T9") == "channels has 'T9': expected some of flair, t1, t1ce, t2."
    assert "expected whole numbers above 0, each once" in refusal(classes={"a": 1, "b": [1, 2]})
    assert "crop_margin is 'x'" in refusal(crop_margin="x")
    assert "spacing is [1, 2]" in refusal(spacing=[1, 2])
    (tmp_path / "empty").mkdir()
    assert "does not fit any form" in refusal(source=str(tmp_path / "empty"))
    (source / "patient001").mkdir()
    (source / "patient001" / "Info.cfg").touch()
    assert "fits the forms brats and acdc: expected one of them as --form." in refusal()
    output.mkdir()
    (output / "mine.txt").touch()
    assert "exists and is not empty" in refusal(form="brats")
    assert [path.name for path in output.iterdir()] == ["mine.txt"]


def test_the_commands_of_the_guide_run(tmp_path: Path, root: Path) -> None:
    folder = tmp_path / "ACDC" / "database" / "training" / "patient001"
    for frame in (1, 12):
        write(folder / f"patient001_frame{frame:02d}.nii.gz", image(frame))
    (folder / "Info.cfg").write_text("ED: 1\nES: 12\n")
    brats(tmp_path / "MICCAI_BraTS_2019_Data_Training")
    write_series(tmp_path / "Pancreas-CT" / "PANCREAS_0001", image())
    write(tmp_path / "Pancreas-CT" / "label0001.nii.gz", label(1), np.diag([-0.8, -0.7, 2, 1]))
    write_hdf5(tmp_path / "BraTS2019" / "data" / "a.h5")
    blocks = re.findall(r"```bash\n(.*?)```", (root / "docs" / "prepare.md").read_text(), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if not line.startswith(("source ", "export "))]
    places = {"$DOWNLOADS": str(tmp_path), "$DATA": str(tmp_path / "data")}
    text = "\n".join(line.strip() for line in lines if line.strip())
    for variable, place in places.items():
        text = text.replace(variable, place)
    commands = [shlex.split(line) for line in text.splitlines()]
    assert len(commands) == 4
    for program, script, *arguments in commands:
        assert (program, script) == ("python", "scripts/prepare.py")
        fire.Fire(prepare, command=arguments)
    assert len(list((tmp_path / "data").glob("*/dataset.json"))) == 4


def test_the_guide_lists_all_forms(root: Path) -> None:
    listed = re.findall(r"^\| `(\w+)` \| ", (root / "docs" / "prepare.md").read_text(), flags=re.MULTILINE)
    assert listed == [form.name for form in FORMS]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.preparing.volumes.HAS_H5PY", False)
    write_hdf5(tmp_path / "source" / "a.h5")
    with pytest.raises(InputError, match=r"a\.h5 needs the package h5py: install it with `pip install h5py`\.$"):
        prepare(str(tmp_path / "source"), str(tmp_path / "data"), spacing=[1, 1, 1])
    assert not (tmp_path / "data").exists()
