"""How many faults the tests catch: plants each of faults.txt into a copy of the sources and tries.

    python .ci/plant_faults.py                      # all of them
    python .ci/plant_faults.py --only lora-scale    # one, or several with commas between
    python .ci/plant_faults.py --list               # their names, and whether each still fits

In faults.txt each begins with "== name: what goes wrong". Then come the file, the lines that are
taken out (-) and put in (+), and the tests that should notice. Those run in the copy, first as it
is, where they must pass, then with one fault at a time. A test that fails has caught it; one that
cannot even be imported has not. The working tree is never written to.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAULTS = Path(__file__).with_name("faults.txt")
LEFT_OUT = (".git", ".nox", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "dist")
# A fault of which a test tells no more than this was none: the sources could not be read.
UNREADABLE = ("ImportError", "ModuleNotFoundError", "SyntaxError", "NameError")
PASSED, FAILED = 0, 1  # pytest's exit codes; others are of collecting, its arguments and itself


@dataclass(frozen=True)
class Fault:
    """Lines of one file in place of others, which must stand there exactly once."""

    name: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def planted(self, text: str) -> str:
        """The file's text with the fault in it.

        Raises:
            ValueError: the lines are not there, or more than once, or what comes is no Python.
        """
        found = f"\n{text}".count(f"\n{self.old}")
        if found != 1:
            raise ValueError(f"its lines stand {found} times in {self.file}; write it anew")
        changed = f"\n{text}".replace(f"\n{self.old}", f"\n{self.new}")[1:]
        try:
            compile(changed, self.file, "exec")
        except SyntaxError as error:
            raise ValueError(f"{self.file} would be no Python ({error}); write it anew") from error
        return changed


def read_faults(text: str) -> list[Fault]:
    """The faults of a file such as faults.txt; ValueError for one that lacks a part."""
    faults = []
    for block in re.split(r"^== ", text, flags=re.MULTILINE)[1:]:
        head, file, *lines = block.rstrip("\n").split("\n")
        name, _, what = head.partition(": ")
        old, new = ("".join(f"{x[1:]}\n" for x in lines if x[:1] == sign) for sign in "-+")
        tests = tuple(line for line in lines if line and line[0] not in "-+")
        if not (what and old and tests):
            raise ValueError(f"{name}: wanted what it is, lines to take out, and tests")
        faults.append(Fault(name, what, file, old, new, tests))
    return faults


class Copy:
    """The sources in a folder of their own, where tests run and faults are planted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
        self.env = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(folder), str(folder / "integrations")]),
            # A file that is changed twice within a second would be taken for its compiled self.
            "PYTHONDONTWRITEBYTECODE": "1",
            "CI": "1",  # hypothesis then draws the same examples each time
            "COLUMNS": "200",
        }

    def imported_from(self) -> str:
        """Where Python finds the package in the copy's environment, which must be in the copy."""
        code = "import bvllm_adapters, bvllm_qwen2; print(*bvllm_adapters.__path__)"
        run = [sys.executable, "-c", code]
        done = subprocess.run(run, cwd=self.folder, env=self.env, capture_output=True, text=True)
        path = done.stdout.strip()
        if not Path(path or "/").is_relative_to(self.folder):
            raise SystemExit(f"got the package from {path or done.stderr}, wanted {self.folder}")
        return path

    @contextmanager
    def planted(self, fault: Fault) -> Iterator[None]:
        file = self.folder / fault.file
        text = file.read_text(encoding="utf-8")
        file.write_text(fault.planted(text), encoding="utf-8")
        try:
            yield
        finally:
            file.write_text(text, encoding="utf-8")

    def test(self, arguments: Sequence[str], seconds: float) -> tuple[int | None, str]:
        """pytest's exit code and what it said; None: it had not ended by then."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", "-rf"]
        command += ["-p", "no:cacheprovider", *arguments]
        process = subprocess.Popen(
            command, cwd=self.folder, env=self.env, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=seconds)
        except BaseException as error:  # what the tests have started ends with them
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return None, said
        return process.returncode, said


def verdict(code: int | None, said: str) -> tuple[bool, str]:
    """Whether a fault is caught, and by which test, or what happened instead."""
    if code == PASSED:
        return False, "NOT CAUGHT"
    if code is None:
        return False, "NOT CAUGHT: the tests did not end in time"
    failed = re.search(r"^FAILED (.+?)(?: - (.*))?$", said, re.MULTILINE)
    if code != FAILED or failed is None or (failed[2] or "").startswith(UNREADABLE):
        last = [line for line in said.splitlines() if line.strip()][-3:]
        return False, f"NO FAULT, as no test could run: {' | '.join(last)}"
    return True, f"caught by {failed[1]}"


def tried(copy: Copy, fault: Fault, *, whole_suite: bool, seconds: float) -> tuple[bool, str]:
    try:
        with copy.planted(fault):
            # -m "": the named tests run even if they are marked as slow.
            caught, told = verdict(*copy.test(["-m", "", *fault.tests], seconds))
            if not caught and whole_suite:
                caught, told = verdict(*copy.test([], 20 * seconds))
    except ValueError as error:
        return False, f"NO FAULT: {error}"
    return caught, told


def listed(faults: Sequence[Fault]) -> int:
    wrong = 0
    for fault in faults:
        try:
            fault.planted((ROOT / fault.file).read_text(encoding="utf-8"))
            told = fault.what
        except (OSError, ValueError) as error:
            told, wrong = f"DOES NOT FIT: {error}", wrong + 1
        print(f"{fault.name:35}{fault.file}: {told}")
    print(f"{len(faults)} faults, {wrong} that do not fit")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--only", metavar="NAME[,NAME]", help="these faults")
    parser.add_argument("--list", action="store_true", help="name them, try none")
    parser.add_argument(
        "--whole-suite", action="store_true", help="all tests, where the named ones catch nothing"
    )
    parser.add_argument("--seconds", type=float, default=300, help="for the tests of one fault")
    given = parser.parse_args()

    faults = read_faults(FAULTS.read_text(encoding="utf-8"))
    if given.only is not None:
        names = given.only.split(",")
        unknown = set(names) - {fault.name for fault in faults}
        if unknown:
            parser.error(f"--only: got {sorted(unknown)}, wanted names that --list tells")
        faults = [fault for fault in faults if fault.name in names]
    if given.list:
        return listed(faults)

    with tempfile.TemporaryDirectory(prefix="bvllm-faults-") as folder:
        copy = Copy(Path(folder).resolve() / "sources")
        print(f"faults are planted beside {copy.imported_from()}", flush=True)
        begin = time.perf_counter()
        tests = sorted({test for fault in faults for test in fault.tests})
        code, said = copy.test(["-m", "", *tests], 20 * given.seconds)
        if code != PASSED:
            print(f"{said}\nwanted these tests to pass without a fault")
            return 1
        print(f"without a fault they pass ({time.perf_counter() - begin:.0f} s)", flush=True)
        count = 0
        for fault in faults:
            begin = time.perf_counter()
            caught, told = tried(copy, fault, whole_suite=given.whole_suite, seconds=given.seconds)
            count += caught
            took = time.perf_counter() - begin
            print(f"{fault.name:35}{fault.file}: {told} ({took:.0f} s)", flush=True)
    print(f"{count} of {len(faults)} faults caught")
    return 0 if count == len(faults) else 1


if __name__ == "__main__":
    sys.exit(main())
