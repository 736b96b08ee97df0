"""Inference over an archive: a scan that cannot be segmented is reported, and the others go on."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dbisl.utils.errors import MAX_REPORTED, InputError

logger = logging.getLogger(__name__)


SEGMENTED, FAILED, SKIPPED, UNFINISHED = "segmented", "failed", "skipped", "unfinished"


COLUMNS = ("case", "status", "seconds", "uncertainty", "files", "reason")


ML = " (ml)"
"""What follows the name of a class in the column of its volumes, which come after the seconds."""


NUMBERS = ("seconds", "uncertainty", ML)


SEPARATOR = ";"


@dataclass
class ScanResult:
    """One row of ``report.csv``.

    Attributes:
        case: path of the scan.
        status: ``segmented``, ``failed``, ``skipped`` (what was asked for was there), or ``unfinished`` (at work; so it
            stays when the program is stopped).
        reason: why it failed, in one sentence.
        seconds: from opening the scan to its segmentation on disk; None where no run has measured it.
        volumes_ml: millilitres of each class but the background, by name.
        uncertainty: entropy (over ``log K``) summed over all voxels, over the number of foreground voxels: about the
            part of the structures that could be wrong. None where nothing was found.
        files: what was written for it, by names in ``output_dir``.
    """

    case: str
    status: str
    reason: str = ""
    seconds: float | None = None
    volumes_ml: dict[str, float] = field(default_factory=dict)
    uncertainty: float | None = None
    files: list[str] = field(default_factory=list)


class ArchiveReport:
    """The measures of the scans in an ``output_dir``: its ``report.csv``, written after each scan, whole or not at all.

    Rows of earlier runs stay, but for scans that this run has, and for failures of scans that are no more. The rows
    also say which files are this program's, so that nothing else is overwritten. One run at a time writes there.

    Args:
        output_dir: of the CSV file; made when it is missing.
        class_names: names of the classes, background first.
    """

    def __init__(self, output_dir: str, class_names: Sequence[str]) -> None:
        self.path = Path(output_dir) / "report.csv"
        self.structures = list(class_names)[1:]
        self.results: list[ScanResult] = []
        self.outputs: dict[str, list[str]] = {}
        self._rows: dict[str, ScanResult] = {}

    def read(self) -> None:
        """Read what earlier runs wrote.

        Raises:
            InputError: when ``report.csv`` is no report.
        """
        if not self.path.exists():
            return
        if not self.path.is_file():
            raise InputError(f"{self.path} is a folder: expected the report of an earlier run, or nothing.")
        with self.path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.DictReader(file)
            columns = list(rows.fieldnames or ())
            if not set(COLUMNS).issubset(columns):
                raise InputError(f"{self.path} has the columns {columns}: expected {list(COLUMNS)} and others.")
            for row in rows:
                if row["status"] == FAILED and not os.path.exists(row["case"]):
                    continue
                try:
                    numbers = {name: float(row[name]) for name in columns if name.endswith(NUMBERS) and row[name]}
                except ValueError as error:
                    raise InputError(f"{self.path}, the row of {row['case']}: {error}; expected a number.") from None
                self._set(
                    ScanResult(
                        row["case"],
                        row["status"],
                        row["reason"],
                        numbers.get("seconds"),
                        {name.removesuffix(ML): volume for name, volume in numbers.items() if name.endswith(ML)},
                        numbers.get("uncertainty"),
                        row["files"].split(SEPARATOR) if row["files"] else [],
                    )
                )

    def earlier(self, case: str) -> ScanResult | None:
        """The row of a scan, by whatever path it was reached."""
        return self._rows.get(os.path.realpath(case))

    def files(self) -> set[str]:
        """Absolute paths of all files that were written by this program."""
        return {os.path.realpath(self.path.parent / name) for row in self._rows.values() for name in row.files}

    def begin(self, case: str) -> None:
        """Note that the files of a scan (``outputs``) are about to be written."""
        self._set(ScanResult(case, UNFINISHED, files=self._files(case)))
        self.write()

    def add(self, result: ScanResult) -> None:
        """Note what became of a scan, in the log and on disk."""
        result.files = [name for name in self._files(result.case) if (self.path.parent / name).is_file()]
        self._set(result)
        self.results.append(result)
        if result.status == FAILED:
            logger.warning(result.reason)
        elif result.status == SEGMENTED:
            logger.info("%s segmented in %.1f s", result.case, result.seconds)
        self.write()

    def write(self) -> None:
        """Write all rows, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = self._rows.values()
        structures = dict.fromkeys([*self.structures, *(name for one in rows for name in one.volumes_ml)])
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                volumes = [f"{name}{ML}" for name in structures]
                writer = csv.DictWriter(file, [*COLUMNS[:3], *volumes, *COLUMNS[3:]])
                writer.writeheader()
                for one in rows:
                    row = {"case": one.case, "status": one.status, "reason": one.reason}
                    row |= {f"{name}{ML}": f"{volume:.3f}" for name, volume in one.volumes_ml.items()}
                    row["seconds"] = "" if one.seconds is None else f"{one.seconds:.1f}"
                    row["uncertainty"] = "" if one.uncertainty is None else f"{one.uncertainty:.4f}"
                    row["files"] = SEPARATOR.join(one.files)
                    writer.writerow(row)
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def finish(self) -> None:
        """Say how it went.

        Raises:
            InputError: when a scan failed, so that the program's exit code says so.
        """
        self.write()
        counts = {status: sum(one.status == status for one in self.results) for status in (SEGMENTED, SKIPPED, FAILED)}
        summary = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        logger.info("%d scans: %s; see %s", len(self.results), summary, self.path)
        failed = [one for one in self.results if one.status == FAILED]
        if failed:
            more = [f"... and {len(failed) - MAX_REPORTED} more."] if len(failed) > MAX_REPORTED else []
            reasons = [one.reason for one in failed[:MAX_REPORTED]]
            raise InputError("\n".join([f"{len(failed)} of {len(self.results)} scans failed:", *reasons, *more]))

    def _files(self, case: str) -> list[str]:
        """What this run writes for a scan, and what earlier ones wrote."""
        row = self.earlier(case)
        return list(dict.fromkeys([*(row.files if row else ()), *self.outputs.get(case, ())]))

    def _set(self, row: ScanResult) -> None:
        self._rows[os.path.realpath(row.case)] = row
