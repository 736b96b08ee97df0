"""Fixtures for the tests of ``dbisl.data``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.make_scans import Study


@pytest.fixture
def study(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Study:
    """A data set that ``check_cases`` accepts, for the test to spoil."""
    return Study(tmp_path, caplog)
