"""The pages of docs/, the notebook and the path of examples: what they say is so."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import sys
from pathlib import Path

import pytest
import transformers

import bvllm_adapters as bvllm

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NAMES = [page.relative_to(DOCS).as_posix() for page in PAGES]
SNIPPETS = {
    (name, i): snippet
    for name, page in zip(NAMES, PAGES, strict=True)
    for i, snippet in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    if "import" in snippet  # else it is a line to look at
}  # those that stand in the README too, or once did, are run by test_readme.py
API = re.compile(r"^::: (\S+)$", re.MULTILINE)


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / ".ci" / "docs")
    yield importlib.import_module
    for name in ("docstrings", "commands", "links"):
        sys.modules.pop(name, None)


def anchors(page: Path) -> set[str]:
    """Of its headings, and of the names that are documented there."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower())) for title in titles}
    return slugs | set(API.findall(text))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        other = (page.parent / path) if path else page
        assert other.is_file(), target
        assert not anchor or anchor in anchors(other), target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_that_are_named_are_there(page):
    """The site holds docs/ alone, so that other files are named and not linked to."""
    for path in re.findall(r"\b((?:examples|integrations|tests)/[\w./-]*\w)", page.read_text()):
        assert (ROOT / path).exists(), path


def test_each_page_is_in_the_contents():
    listed = re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == NAMES


def test_all_that_is_public_is_in_the_reference():
    told = [name for page in PAGES for name in API.findall(page.read_text())]
    assert len(set(told)) == len(told)
    wanted = {f"bvllm_adapters.{name}" for name in bvllm.__all__}
    for wing in ("testing", "evaluation", "training", "bench"):
        module = importlib.import_module(f"bvllm_adapters.{wing}")
        wanted |= {f"bvllm_adapters.{wing}.{name}" for name in module.__all__}
    assert wanted <= set(told), wanted - set(told)
    for name in told:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_the_page_of_commands_is_theirs(tools):
    page = tools("commands").page()
    assert page == (DOCS / "reference" / "commands.md").read_text(), (
        "python .ci/docs/commands.py --write"
    )


def test_docstrings_become_markdown(tools):
    made = tools("docstrings").as_markdown(
        "Ask `Answer` of it; see `wrap()`.\n\n"
        "Args:\n    a, *b: shared,\n        over two lines.\n    c: last. d: beside it.\n\n"
        "Returns:\n    (N, D) tokens.\n\n"
        "Raises:\n    OSError: never. ValueError: a wrong one, or\n    none at all.",
        {"Answer", "wrap"},
    )
    assert made == (
        "Ask [`Answer`][bvllm_adapters.Answer] of it; see [`wrap()`][bvllm_adapters.wrap].\n\n\n"
        "**Arguments**\n\n- `a`, `*b`: shared,\n  over two lines.\n- `c`: last. d: beside it.\n\n\n"
        "**Returns**\n\n(N, D) tokens.\n\n\n"
        "**Raises**\n\n- `OSError`: never. ValueError: a wrong one, or\n  none at all.\n"
    )


def test_links_of_a_site_are_checked(tools, tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1> <a href="#top"></a> <a href="b.html#here"></a>'
        '<a href="b.html#no"></a> <a href="c.html"></a> <a href="https://example.org/no"></a>'
        '<img src="no.png">'
    )
    (tmp_path / "b.html").write_text('<p id="here"></p> <a href="a.html">back</a>')
    assert set(tools("links").broken(tmp_path)) == {
        "a.html: b.html#no", "a.html: c.html", "a.html: no.png"
    }  # fmt: skip


def snippets(*pages: str) -> list[tuple[str, int]]:
    return [key for key in SNIPPETS if key[0] in pages]


@pytest.fixture
def run(tmp_path, monkeypatch):
    for folder in ("examples", "integrations"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)  # what a snippet writes goes here

    def execute(key):
        names = {"__name__": "docs"}
        exec(compile(SNIPPETS[key], key[0], "exec"), names)
        return names

    return execute


def test_a_report(run, tmp_path):
    (key,) = snippets("reports.md")
    names = run(key)
    assert names["answer"].text == "6" and (tmp_path / "report.html").stat().st_size > 10_000


def test_ones_own_questions(run, capsys):
    (key,) = snippets("evaluate.md")
    results = run(key)["results"]
    assert [row["right"] for row in results.rows] == [True, True]
    assert "accuracy  1.000" in capsys.readouterr().out


def test_into_engines(run, tmp_path):
    frames, tokens = snippets("engines.md")
    names = run(frames)
    indices = names["request"]["media_io_kwargs"]["video"]["frames_indices"]
    assert indices == names["metadata"]["frames_indices"] and len(names["frames"]) == 8
    names = run(tokens)
    assert len(names["prompt"].tokens) <= 64 and (tmp_path / "language" / "config.json").is_file()


@pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 18),
    reason="transformers' own video models are served from 5.18 on",
)
def test_thousands_of_videos(run):
    (key,) = snippets("batch.md")
    names = run(key)
    assert [row["answer"] for row in names["rows"]][:3] == ["6", "top left", "cyan"]
    assert bvllm.read_results("answers.jsonl") == names["rows"]
    assert all(len(row["frames"]) == 8 for row in names["chosen"])


def test_the_tour_runs_and_says_what_was_saved(monkeypatch):
    monkeypatch.chdir(ROOT)
    file = ROOT / "examples" / "tour.ipynb"
    assert file.stat().st_size < 300_000
    cells = [cell for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "code"]
    names = {"__name__": "tour"}
    for cell in cells:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile("".join(cell["source"]), file.name, "exec"), names)
        saved = "".join(
            "".join(made["text"]) for made in cell["outputs"] if made["output_type"] == "stream"
        )
        assert timeless(out.getvalue()) == timeless(saved)
    assert names["answer"].trace._repr_html_().startswith("<")


def timeless(text: str) -> list[str]:
    """Without seconds of stages; what is chosen may tell floats of another machine apart."""
    return [line for line in text.splitlines() if not line.startswith("seconds ")]


def test_the_path_of_examples_leads_past_each_of_them():
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    for file in (ROOT / "examples").iterdir():
        if file.suffix in (".py", ".ipynb") or (file.is_dir() and file.name != "__pycache__"):
            assert f"`{file.name}" in text, f"{file.name} is not in examples/README.md"
