"""The record of an inference over many scans: ``report.csv`` in the output folder."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dbisl.utils.errors import InputError, raise_if_any
from dbisl.utils.files import atomic_path

logger = logging.getLogger(__name__)

SEGMENTED, FAILED, SKIPPED, UNFINISHED = "segmented", "failed", "skipped", "unfinished"
"""The values of ``ScanResult.status``."""

COLUMNS = ("case", "status", "seconds", "uncertainty", "files", "reason", "warning")
"""The columns of every report; reports of earlier versions lack ``warning``.

The volumes of the classes stand between ``seconds`` and ``uncertainty``.
"""

ML = " (ml)"
"""The end of a volume's column, after the name of the class."""

NUMBERS = ("seconds", "uncertainty", ML)
"""The ends of the columns that hold numbers."""

SEPARATOR = ";"
"""What separates the names in the column ``files``."""


@dataclass
class ScanResult:
    """One row of ``report.csv``.

    Attributes:
        case: path of the scan.
        status: ``segmented``; ``failed``; ``skipped``, because an earlier run wrote all that is asked for; or
            ``unfinished``, from the start of a scan to its end, so that a scan keeps it when the program is stopped.
        reason: why the scan failed, in one sentence.
        seconds: time from opening the scan to its segmentation on disk; None if no run measured it.
        volumes_ml: volume of each foreground class by its name, in millilitres.
        uncertainty: entropy (divided by ``log K``) summed over all voxels, divided by the number of foreground voxels:
            roughly the fraction of the structures that could be wrong. None if the scan has no foreground voxel.
        files: names in ``output_dir`` of the files that were written for the scan.
        warning: how the scan is unlike the training scans; empty if it is like them, or if nothing is known of them.
    """

    case: str
    status: str
    reason: str = ""
    seconds: float | None = None
    volumes_ml: dict[str, float] = field(default_factory=dict)
    uncertainty: float | None = None
    files: list[str] = field(default_factory=list)
    warning: str = ""


class ArchiveReport:
    """The results of all scans in an ``output_dir``, kept in its ``report.csv``, which is written after each scan.

    Rows of earlier runs stay, with two exceptions: this run replaces the rows of its own scans, and a failed scan that
    no longer exists loses its row. The rows also tell which files this program wrote, so that it overwrites no others.
    Only one run at a time may write to an ``output_dir``.

    Args:
        output_dir: folder of ``report.csv``; created if it is missing.
        class_names: names of the classes, background first.

    Attributes:
        path: the CSV file.
        structures: names of the foreground classes.
        results: the results of this run, in the order of :meth:`add`.
        outputs: the files that this run writes for each scan, by the scan's path; names in ``output_dir``.
    """

    def __init__(self, output_dir: str, class_names: Sequence[str]) -> None:
        self.path = Path(output_dir) / "report.csv"
        self.structures = list(class_names)[1:]
        self.results: list[ScanResult] = []
        self.outputs: dict[str, list[str]] = {}
        self._rows: dict[str, ScanResult] = {}

    def read(self) -> None:
        """Read the rows of earlier runs, if there is a report.

        Raises:
            InputError: when ``report.csv`` is not a report.
        """
        if not self.path.exists():
            return
        if not self.path.is_file():
            raise InputError(f"{self.path} is a folder: expected the report of an earlier run, or nothing.")
        with self.path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.DictReader(file)
            columns = list(rows.fieldnames or ())
            if not set(COLUMNS).difference(["warning"]).issubset(columns):
                raise InputError(f"{self.path} has the columns {columns}: expected {list(COLUMNS)} and others.")
            number_columns = [name for name in columns if name.endswith(NUMBERS)]
            for row in rows:
                if row["status"] != FAILED or os.path.exists(row["case"]):
                    self._set(self._result(row, number_columns))

    def earlier(self, case: str) -> ScanResult | None:
        """Return the row of a scan; links to the same scan have the same row."""
        return self._rows.get(os.path.realpath(case))

    def files(self) -> set[str]:
        """Return the absolute paths of all files that this program wrote."""
        return {os.path.realpath(self.path.parent / name) for row in self._rows.values() for name in row.files}

    def begin(self, case: str) -> None:
        """Record on disk that a scan is at work, and which files it will write (``outputs``)."""
        self._set(ScanResult(case, UNFINISHED, files=self._files(case)))
        self.write()

    def add(self, result: ScanResult) -> None:
        """Record the result of a scan on disk, and log it."""
        result.files = [name for name in self._files(result.case) if (self.path.parent / name).is_file()]
        self._set(result)
        self.results.append(result)
        if result.status == FAILED:
            logger.warning(result.reason)
        elif result.status == SEGMENTED:
            logger.info("%s segmented in %.1f s", result.case, result.seconds)
            if result.warning:
                logger.warning("%s is %s", result.case, result.warning)
        self.write()

    def write(self) -> None:
        """Write ``report.csv``, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = self._rows.values()
        # Earlier runs may have used a model of other classes.
        structures = dict.fromkeys([*self.structures, *(name for row in rows for name in row.volumes_ml)])
        columns = [*COLUMNS[:3], *(f"{name}{ML}" for name in structures), *COLUMNS[3:]]
        with (
            atomic_path(self.path) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(_cells(row) for row in rows)

    def finish(self) -> None:
        """Write the report and log how many scans were segmented, skipped and failed.

        Raises:
            InputError: when a scan failed, so that the exit code of the program shows it.
        """
        self.write()
        counts = {status: sum(one.status == status for one in self.results) for status in (SEGMENTED, SKIPPED, FAILED)}
        summary = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        logger.info("%d scans: %s; see %s", len(self.results), summary, self.path)
        failures = [one.reason for one in self.results if one.status == FAILED]
        raise_if_any(failures, f"{len(failures)} of {len(self.results)} scans failed:")

    def _result(self, row: Mapping[str, str], number_columns: Sequence[str]) -> ScanResult:
        """Return the result that a row of ``report.csv`` holds."""
        try:
            numbers = {name: float(row[name]) for name in number_columns if row[name]}
        except ValueError as error:
            raise InputError(f"{self.path}, the row of {row['case']}: {error}; expected a number.") from None
        return ScanResult(
            row["case"],
            row["status"],
            row["reason"],
            numbers.get("seconds"),
            {name.removesuffix(ML): volume for name, volume in numbers.items() if name.endswith(ML)},
            numbers.get("uncertainty"),
            row["files"].split(SEPARATOR) if row["files"] else [],
            row.get("warning") or "",
        )

    def _files(self, case: str) -> list[str]:
        """Return the names of the files that this run writes for a scan and that earlier runs wrote."""
        row = self.earlier(case)
        return list(dict.fromkeys([*(row.files if row else ()), *self.outputs.get(case, ())]))

    def _set(self, row: ScanResult) -> None:
        self._rows[os.path.realpath(row.case)] = row


def _cells(result: ScanResult) -> dict[str, str]:
    """Return the cells of a result's row in ``report.csv``."""
    return {
        "case": result.case,
        "status": result.status,
        "seconds": "" if result.seconds is None else f"{result.seconds:.1f}",
        **{f"{name}{ML}": f"{volume:.3f}" for name, volume in result.volumes_ml.items()},
        "uncertainty": "" if result.uncertainty is None else f"{result.uncertainty:.4f}",
        "files": SEPARATOR.join(result.files),
        "reason": result.reason,
        "warning": result.warning,
    }
