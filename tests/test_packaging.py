"""The wheel: what is in it, and that it works without the source tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("bvllm_adapters", "integrations", "examples", "tests")
FILES = ("pyproject.toml", "setup.cfg", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    for folder in SOURCES:
        shutil.copytree(
            ROOT / folder, source / folder, symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
        )  # fmt: skip
    for file in FILES:
        shutil.copy(ROOT / file, source)
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index",
            "--no-build-isolation", "--wheel-dir", str(out), str(source),
        ],
        check=True,
        timeout=300,
    )  # fmt: skip
    (file,) = out.iterdir()
    return file


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    integrations = {
        f.name for f in (ROOT / "integrations").iterdir() if f.name.startswith("bvllm_")
    }
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "bvllm_adapters",
        *integrations,
    }
    python = {
        f"{folder.name}/{file.relative_to(folder).as_posix()}"
        for folder in (ROOT / "bvllm_adapters", *(ROOT / "integrations" / i for i in integrations))
        for file in folder.rglob("*.py")
    }
    assert python == {name for name in names if name.endswith(".py")}
    for needed in ("py.typed", "data/bert-base-uncased-vocab.txt", "data/NOTICE.md"):
        assert f"bvllm_adapters/{needed}" in names
    clip = zipfile.ZipFile(wheel).getinfo("bvllm_adapters/data/big_buck_bunny.mp4")
    assert clip.file_size == (ROOT / "examples" / "big_buck_bunny.mp4").stat().st_size
    for shipped in ("model.safetensors", "README.md", "baselines/uniform.safetensors"):
        assert f"bvllm_qwen2/demo/{shipped}" in names
    for task in (ROOT / "integrations" / "bvllm_lmms_eval" / "tasks").rglob("*.*"):
        assert task.relative_to(ROOT / "integrations").as_posix() in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_works_without_the_source_tree(wheel, tmp_path):
    site = tmp_path / "site"
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
            "--target", str(site), str(wheel),
        ],
        check=True,
        timeout=300,
    )  # fmt: skip
    code = (
        "import bvllm_adapters, bvllm_qwen2\n"
        "print(bvllm_adapters.__file__, bvllm_qwen2.__file__)\n"
        "from bvllm_adapters.cli.main import main\n"
        "raise SystemExit(main(['demo']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files, rest = done.stdout.split("\n", 1)
    assert files.count(str(site)) == 2
    assert "visual tokens of a budget of 16" in rest
    assert "\nanswer    6\n" in rest
