"""Errors for input that cannot be used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dbisl.utils.errors import MAX_REPORTED, InputError, input_errors_as, raise_if_any


class ServerError(Exception):
    """Error that a server answers with."""


def test_without_problems_nothing_is_raised() -> None:
    problems: list[str] = []
    raise_if_any(problems)
    raise_if_any(problems, "heading")
    problems.append("One is wrong.")
    with pytest.raises(InputError, match=r"^heading\nOne is wrong\.$"):
        raise_if_any(problems, "heading")


def test_problems_are_listed_in_order() -> None:
    with pytest.raises(InputError) as caught:
        raise_if_any(["One is wrong.", "Two is wrong."], "2 of 3 failed:")
    assert str(caught.value) == "2 of 3 failed:\nOne is wrong.\nTwo is wrong."


@pytest.mark.parametrize("more", [0, 3])
def test_problems_beyond_the_limit_are_counted(more: int) -> None:
    problems = [f"{index} is wrong." for index in range(MAX_REPORTED + more)]
    with pytest.raises(InputError) as caught:
        raise_if_any(problems)
    rest = [f"... and {more} more problems."] if more else []
    assert str(caught.value).splitlines() == problems[:MAX_REPORTED] + rest


@pytest.mark.parametrize("error", [InputError("a.nii.gz is broken."), SystemExit("a.nii.gz is broken.")])
def test_a_server_gets_its_own_error_with_the_message(error: SystemExit) -> None:
    with pytest.raises(ServerError, match=r"^a\.nii\.gz is broken\.$") as caught, input_errors_as(ServerError):
        raise error
    assert caught.value.__cause__ is error


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(KeyError, match="key"), input_errors_as(ServerError):
        raise KeyError("key")


def test_a_block_without_an_error_runs_to_its_end() -> None:
    done = False
    with input_errors_as(ServerError):
        done = True
    assert done


def test_an_input_error_prints_its_sentence_and_no_traceback(tmp_path: Path) -> None:
    command = "import sys; from dbisl.data import find_cases; find_cases(sys.argv[1])"
    result = subprocess.run(
        [sys.executable, "-c", command, str(tmp_path)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "bundle"), "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 1
    assert result.stderr.startswith(f"dataset_dir {tmp_path} has no images") and result.stderr.count("\n") == 1
