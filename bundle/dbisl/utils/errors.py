"""The error for input that cannot be used: how it is raised, and how a server turns it into its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

MAX_REPORTED = 10
"""How many problems one error lists. It counts the others."""


class InputError(SystemExit):
    """Error for input of the user that cannot be used. Its message is one sentence, or several with one per line.

    It derives from ``SystemExit`` because MONAI's config parser wraps every ``Exception`` that is raised while it
    evaluates a config in a ``RuntimeError`` with a long traceback. ``SystemExit`` passes through: Python prints the
    message on stderr and exits with code 1.
    """


def raise_if_any(problems: Sequence[str], heading: str = "") -> None:
    """Raise one error that lists all problems, one per line.

    Args:
        problems: sentences. If there are none, nothing happens. The error lists the first ``MAX_REPORTED`` of them and
            counts the others.
        heading: a line to put before the first problem.

    Raises:
        InputError: if there is a problem.
    """
    if not problems:
        return
    lines = [heading] if heading else []
    lines += problems[:MAX_REPORTED]
    if len(problems) > MAX_REPORTED:
        lines.append(f"... and {len(problems) - MAX_REPORTED} more problems.")
    raise InputError("\n".join(lines))


@contextmanager
def input_errors_as(make_error: Callable[[str], Exception]) -> Iterator[None]:
    """Replace an :class:`InputError` of the block by another exception.

    A server needs this: an ``InputError`` is a ``SystemExit`` and would end its process. Every ``SystemExit`` of the
    block is replaced, because the libraries that a server calls raise plain ones. Other exceptions pass unchanged.

    Args:
        make_error: takes the message and returns the exception to raise, such as
            ``lambda message: HTTPException(400, message)``.
    """
    try:
        yield
    except SystemExit as error:
        raise make_error(str(error)) from error
