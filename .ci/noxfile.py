"""The versions that this project is tested with, each in an environment of its own.

    pip install nox uv
    nox -f .ci/noxfile.py                           # all of them, on each interpreter that is here
    nox -f .ci/noxfile.py -s 'newest-3.12'          # one
    nox -f .ci/noxfile.py -s lmms_eval              # lmms-eval's plug-in, beside lmms-eval
    nox -f .ci/noxfile.py -s ray_batch              # a table on Ray Data, by actors that are killed
    nox -f .ci/noxfile.py -s docs                   # the site of docs/, with all links checked
    nox -f .ci/noxfile.py -s lock                   # today's versions into constraints.txt

Each run of the whole suite adds a line to .nox/versions.md, which is the table of
docs/versions.md.
"""

import datetime
import re
from pathlib import Path
from xml.etree import ElementTree

import nox

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ".ci/constraints.txt"
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
SHOWN = ["torch", "transformers", "peft", "timm", "av", "numpy"]
# What a library is going to change is told at the end of a run, and fails the tested versions only.
TOLD = [
    f"-Wdefault::{kind}"
    for kind in ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning")
]

nox.options.envdir = str(ROOT / ".nox")
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["floor", "tested", "newest"]


@nox.session(python=PYTHONS[0])
def floor(session: nox.Session) -> None:
    """The oldest versions that pyproject.toml allows."""
    session.chdir(ROOT)
    found = Path(session.create_tmp()) / "floor.txt"
    _compile(session, found, "--extra=test", "--resolution=lowest-direct")
    session.install("-r", str(found))
    session.install("--no-deps", "-e", ".")
    _test(session, *TOLD)


@nox.session(python=PYTHONS)
def tested(session: nox.Session) -> None:
    """Those of constraints.txt, which the README's test command installs too."""
    session.chdir(ROOT)
    session.install("-e", ".[test]", "-c", CONSTRAINTS)
    _test(session)


@nox.session(python=PYTHONS)
def newest(session: nox.Session) -> None:
    """Today's."""
    session.chdir(ROOT)
    session.install("--upgrade", "-e", ".[test]")
    _test(session, *TOLD)


@nox.session(python=PYTHONS[1])
def lmms_eval(session: nox.Session) -> None:
    """lmms-eval beside us, which wants older versions than we do: runs of it, offline."""
    session.chdir(ROOT)
    session.install("-e", ".[test,lmms-eval]")
    tests = [str(file) for file in Path("tests/integrations").glob("test_bvllm_lmms_eval*.py")]
    session.run("python", "-m", "pytest", "-q", *TOLD, *tests, *session.posargs)


@nox.session(python=PYTHONS[1])
def ray_batch(session: nox.Session) -> None:
    """examples/ray_batch.py on Ray Data, which starts a cluster of its own on this machine."""
    session.chdir(ROOT)
    session.install("-e", ".[test,ray]", "ray[data]==2.60.0")
    session.run(
        "python", "-m", "pytest", "-q", "-m", "", *TOLD, "tests/test_ray_batch.py", *session.posargs
    )


@nox.session(python=PYTHONS[1])
def docs(session: nox.Session) -> None:
    """The site, into site/; a link or an anchor that leads nowhere is an error. Sources are
    read and not imported, so that torch is not needed."""
    session.chdir(ROOT)
    pyproject = nox.project.load_toml("pyproject.toml")
    session.install(*pyproject["project"]["optional-dependencies"]["docs"])
    session.run("zensical", "build", "--strict", "--clean")
    session.run("python", ".ci/docs/links.py", "site")


@nox.session(python=PYTHONS[1])
def lock(session: nox.Session) -> None:
    """Write today's versions of everything but torch, which brings its own libraries."""
    session.chdir(ROOT)
    found = Path(session.create_tmp()) / "lock.txt"
    _compile(session, found, "--extra=dev", "--universal", f"--python-version={PYTHONS[0]}")
    with_torch = re.compile(r"(torch|torchvision|triton|nvidia-.*|cuda-.*)==")
    lines = [line for line in found.read_text().splitlines() if not with_torch.match(line)]
    file = ROOT / CONSTRAINTS
    head = [line for line in file.read_text().splitlines() if re.match(r"#|torch>", line)]
    file.write_text("\n".join([*head, *lines]) + "\n")


def _compile(session: nox.Session, out: Path, *settings: str) -> None:
    session.install("uv")
    session.run(
        "uv", "pip", "compile", "pyproject.toml", *settings,
        "--no-annotate", "--no-header", "--quiet", "-o", str(out),
    )  # fmt: skip


def _test(session: nox.Session, *warnings: str) -> None:
    report = Path(session.create_tmp()) / "report.xml"
    report.unlink(missing_ok=True)
    try:
        session.run(
            "python", "-m", "pytest", "-q", f"--junitxml={report}", *warnings, *session.posargs
        )
    finally:
        if report.is_file():
            _tell(session, report)


def _tell(session: nox.Session, report: Path) -> None:
    """The line of a run: what was installed, and what came out."""
    code = (
        "import sys; from importlib.metadata import version; "
        "print(sys.version.split()[0], *map(version, sys.argv[1:]))"
    )
    versions = session.run("python", "-c", code, *SHOWN, silent=True)
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    counts = {name: int(suite.get(name, 0)) for name in ("failures", "errors", "skipped", "tests")}
    passed = counts.pop("tests") - sum(counts.values())
    told = [f"{passed} passed", *(f"{count} {name}" for name, count in counts.items() if count)]
    row = [session.name.partition("-")[0], *str(versions).split(), ", ".join(told)]
    line = f"| {' | '.join([*row, datetime.date.today().isoformat()])} |"
    file = Path(session.cache_dir).parent / "versions.md"
    with file.open("a") as table:
        table.write(line + "\n")
    session.log(line)
