"""How the tests call commands.

A new Python takes four seconds to import PyTorch, MONAI and Ignite, and the tests call a hundred commands. So one
process imports these libraries (nothing of ours), and each command runs in a fork of it. The tests of the zoo and of
torchrun start real processes of their own.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

Run = Callable[..., subprocess.CompletedProcess[str]]
"""``run(run_id, [config files], key=value, ...)``: the command line, in the bundle's folder."""

TINY = {"epochs": 2, "iterations_per_epoch": 2, "features": 4, "val_interval": 1, "log_interval": 1}
"""Overrides of a training that takes seconds."""

LIBRARIES = [
    "fire",
    "monai.bundle",
    "monai.engines",
    "monai.handlers",
    "monai.networks.nets",
    "torch.utils.tensorboard",
]
ROOT = Path(__file__).resolve().parents[2]
INSTALLED = str(ROOT / "bundle")
"""Where ``make setup`` installs the package from."""

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(LIBRARIES)


def run_python(arguments: Sequence[object], cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` in a folder, and return what it printed and its exit code.

    Args:
        arguments: ``-m MODULE ...`` or ``SCRIPT ...``.
        cwd: the folder.
        timeout: seconds after which the command is killed.

    Raises:
        subprocess.TimeoutExpired: when the command was killed.
    """
    words = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        process = _server.Process(target=_be_python, args=(words, str(cwd), *map(str, outputs)))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(words, timeout)
        out, err = (path.read_text(errors="replace") if path.is_file() else "" for path in outputs)
        return subprocess.CompletedProcess(words, process.exitcode or 0, out, err)


def _be_python(words: list[str], cwd: str, stdout: str, stderr: str) -> None:
    """Become the process that ``python WORDS`` would start, from its working folder to its exit code."""
    for path, stream in ((stdout, 1), (stderr, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.chdir(cwd)
    multiprocessing.set_start_method("fork", force=True)  # Python's default on Linux, for the loaders' workers
    is_module = words[0] == "-m"
    first = cwd if is_module else str(Path(words[0]).resolve().parent)
    # Not what pytest adds to the path, but the installed package last, as pip does.
    sys.path[:] = [first, *(path for path in sys.path if path not in ("", str(ROOT), INSTALLED)), INSTALLED]
    sys.argv = words[1:] if is_module else words
    code = 0
    try:
        if is_module:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if code == 1 and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
