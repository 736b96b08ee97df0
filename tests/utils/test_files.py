"""Names of cases, atomic writes, and first lines of errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from dbisl.utils.files import atomic_path, case_name, first_line


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a.nii.gz", "a"),
        ("images/a.nii", "a"),
        ("A.NII.GZ", "A"),
        ("sub.niigata.nii.gz", "sub.niigata"),
        ("sub.niigata", "sub.niigata"),
        ("1.2.840.113.nii.gz", "1.2.840.113"),
        ("a.nii.nii.gz", "a.nii"),
        ("a.gz", "a.gz"),
        ("archive/patient/series_2", "series_2"),
        (Path("images/a.nii.gz"), "a"),
    ],
)
def test_the_name_of_a_case(path: str | Path, name: str) -> None:
    assert case_name(path) == name


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path and temporary.name.endswith("a.nii.gz")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_stays_as_it_was_if_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_raises_before_it_writes_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a.csv"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("first\nsecond"), "first"),
        (ValueError(), "ValueError"),
        (ValueError("\nsecond"), "second"),
        (ValueError("\n"), "ValueError"),
        (ValueError("x" * 101), "x" * 100),
    ],
)
def test_the_first_line_of_an_error(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_a_line_is_cut_to_a_length() -> None:
    assert first_line(ValueError("too long"), length=3) == "too"
