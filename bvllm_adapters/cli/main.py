"""`bvllm COMMAND`: finds the command's module, and tells a problem in one line."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import NoReturn

from bvllm_adapters.cli import ask, batch, bench, demo, evaluate, hosts, plan, report, select, train

COMMANDS = {
    "demo": demo,
    "ask": ask,
    "select": select,
    "batch": batch,
    "report": report,
    "hosts": hosts,
    "train": train,
    "evaluate": evaluate,
    "bench": bench,
    "plan": plan,
}
# What is raised of a wrong argument, a file, a package that is not there, a device that is full.
EXPECTED = (ValueError, TypeError, OSError, ImportError, MemoryError, RuntimeError)
INTERRUPTED, BROKEN_PIPE = 130, 141  # as shells have them: 128 and the signal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command.

    Returns:
        0 if it went well, 1 for a problem, which is told in one line on stderr, 130 if it was
        interrupted; a wrong command line exits with 2. BVLLM_DEBUG=1 shows where a problem arose.
    """
    options = _parser().parse_args(arguments)
    interrupts: list[int] = []
    try:
        with warnings.catch_warnings(), _noting(interrupts):
            warnings.showwarning = _show_warning
            code = int(options.run(options))
        sys.stdout.flush()
        return _interrupted() if interrupts else code
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:  # whoever read our lines, as `head` does, has seen enough
        with open(os.devnull, "w") as nowhere, suppress(OSError):  # nor is the rest flushed there
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        if interrupts:
            return _interrupted()
        if os.environ.get("BVLLM_DEBUG"):
            raise
        print(f"bvllm: {_told(error)}", file=sys.stderr)
        return 1


def _interrupted() -> int:
    print("bvllm: interrupted", file=sys.stderr)
    return INTERRUPTED


@contextmanager
def _noting(interrupts: list[int]) -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt inside, and is noted: libraries that are being imported may
    take it for an error of their own, or for nothing."""
    if threading.current_thread() is not threading.main_thread():  # who gets no signals
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _told(error: Exception) -> str:
    """An error in one line."""
    words = " ".join(str(error).split())
    if isinstance(error, EXPECTED) and words:
        return words
    return f"{type(error).__name__}: {words} (BVLLM_DEBUG=1 shows where)"


def _show_warning(message: Warning | str, *where: object, **more: object) -> None:
    print(f"bvllm: {' '.join(str(message).split())}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """Tells of a wrong command line in one line, as of any other problem."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"bvllm: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="bvllm", description="A visual-token budget for video LLMs.")
    parser.add_argument(
        "--version", action="version", version=f"bvllm_adapters {version('bvllm-adapters')}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        sub = commands.add_parser(name, help=module.TEXT, description=module.TEXT)
        module.arguments(sub)
        sub.set_defaults(run=module.run)
    return parser
