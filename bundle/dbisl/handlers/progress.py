"""A bar that shows how far an engine is, and how long it still takes."""

from __future__ import annotations

import sys
from contextlib import ExitStack

from ignite.engine import Engine, Events
from ignite.handlers.tqdm_logger import ProgressBar
from tqdm.contrib.logging import logging_redirect_tqdm


class Progress:
    """Shows a bar with the time left for each epoch of an engine, if the program runs in a terminal.

    It is Ignite's ``ProgressBar``. While it is there, the lines of the log are written above it. Where the output goes
    to a file or to another program, nothing is shown.

    Args:
        description: what the engine does, such as ``"training"``.
    """

    def __init__(self, *, description: str) -> None:
        self.description = description
        self._redirection = ExitStack()

    def attach(self, engine: Engine) -> None:
        """Register with an engine."""
        if not sys.stderr.isatty():
            return
        engine.add_event_handler(Events.STARTED, self._redirect_log)
        ProgressBar(desc=self.description).attach(engine)
        engine.add_event_handler(Events.COMPLETED, self._restore_log)

    def _redirect_log(self, engine: Engine) -> None:
        self._redirection.close()  # of a run that failed
        self._redirection.enter_context(logging_redirect_tqdm())

    def _restore_log(self, engine: Engine) -> None:
        self._redirection.close()
