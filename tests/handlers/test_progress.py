"""The bar of an engine: only in a terminal, and the log above it."""

from __future__ import annotations

import io
import logging
import re
import sys

import pytest
from ignite.engine import Engine, Events

from dbisl.handlers import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run_engine() -> list[logging.Handler]:
    """Run an engine with a bar; return the root logger's handlers as they are while it runs."""
    during: list[logging.Handler] = []
    engine = Engine(lambda engine, batch: None)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda engine: during.extend(logging.root.handlers))
    Progress(description="segmenting").attach(engine)
    engine.run(range(4), max_epochs=1)
    return during


def test_a_terminal_shows_how_far_it_is_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    before = list(logging.root.handlers)
    during = run_engine()
    shown = terminal.getvalue()
    assert "segmenting" in shown and re.search(r"\[\d/4\] .*<00:00\]", shown)
    assert any("Tqdm" in type(handler).__name__ for handler in during)
    assert logging.root.handlers == before


def test_a_file_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    before = list(logging.root.handlers)
    assert run_engine() == before
    assert file.getvalue() == ""
