"""Scans on disk -> labeled, unlabeled and validation cases, and the checks that run before any training.

:func:`find_cases` reads a folder or a datalist, :func:`check_cases` reads every file once. Both raise
:class:`InputError` with a sentence that names the file or the key, what was found and what was expected.
"""

from __future__ import annotations

MAX_REPORTED = 10
"""Problems that one error lists; the rest is counted."""


class InputError(SystemExit):
    """Input of the user that cannot be trained on, said in one sentence (or one sentence a line).

    It derives from ``SystemExit`` because MONAI's config parser wraps every ``Exception`` that is raised while it
    evaluates a config in a ``RuntimeError`` with a long traceback. ``SystemExit`` passes through: Python prints the
    sentence on stderr and exits with code 1.
    """
