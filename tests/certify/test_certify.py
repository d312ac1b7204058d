"""Our hosts and a third party's keep the whole contract; what the report and the command say."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from bvllm_adapters.certify import CHECKS, Check, NotApplicable, Outcome, Report, certify
from bvllm_adapters.certify import certify_class as of_class
from bvllm_adapters.cli.main import main
from bvllm_adapters.hosts.find import find_host
from bvllm_adapters.hosts.host import HostError

ROOT = Path(__file__).parents[2]
PAPER = [
    "BvllmQwen2ForConditionalGeneration",
    "Videollama2Qwen2ForCausalLM",
    "LlavaLlamaAttForCausalLM",
]
OF_TRANSFORMERS = [
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
    "InternVLForConditionalGeneration",
]
UNTRAINED = {"permuted frames"}  # a selector that looks at times
# transformers leaves functions of its own in these once they have run.
UNPICKLED = {"LlavaOnevisionForConditionalGeneration", "InternVLForConditionalGeneration"}


def not_applicable(report: Report) -> set[str]:
    return {each.name for each in report.outcomes if each.state == "not applicable"}


def quick_first(names: Sequence[str]) -> list[Any]:
    """The others are of the slow part: each check of theirs is tested by itself elsewhere."""
    first, *others = names
    return [first, *(pytest.param(name, marks=pytest.mark.slow) for name in others)]


def check_whole(report: Report) -> None:
    report.raise_for_failures()
    assert [each.name for each in report.outcomes] == [check.name for check in CHECKS]


@pytest.mark.parametrize("name", quick_first(PAPER))
def test_the_papers_hosts(name: str) -> None:
    report = of_class(name)
    check_whole(report)
    assert report.model == name
    assert not_applicable(report) == {"keeps all"}


@pytest.mark.parametrize("name", quick_first(OF_TRANSFORMERS))
def test_transformers_hosts(name: str, tmp_path: Path) -> None:
    """By the folder of a checkpoint, as users have it."""
    if "mm_encoder_outputs" not in signature(getattr(transformers, name).forward).parameters:
        pytest.skip(f"transformers {transformers.__version__} takes no mm_encoder_outputs")
    host: Any = find_host(name)
    host.tiny(tmp_path, name)
    report = of_class(name, tmp_path)
    check_whole(report)
    assert not_applicable(report) - {"pickle"} == UNTRAINED
    assert "pickle" not in not_applicable(report) or name in UNPICKLED


def test_a_family_whose_videos_are_not_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its model does in calls of its own is certified all the same."""
    name = OF_TRANSFORMERS[0]
    if "mm_encoder_outputs" not in signature(getattr(transformers, name).forward).parameters:
        pytest.skip(f"transformers {transformers.__version__} takes no mm_encoder_outputs")
    import bvllm_transformers.shim as shim

    def refuses(model: object, processor: object) -> None:
        raise HostError("its videos are not read here")

    monkeypatch.setattr(shim, "check_asked", refuses)
    own = ["keeps all", "forward", "generate", "text alone"]
    report = of_class(name, only=[*own, "ask", "budget"])
    report.raise_for_failures()
    assert not_applicable(report) == {"ask", "budget"}
    assert report["ask"].detail == "its videos are not read here"


@pytest.fixture
def acme(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "third_party_host"))
    import acme_host

    return acme_host


def test_a_third_partys_host(acme: Any) -> None:
    report = of_class("AcmeVideoForCausalLM", host="acme_host:HOST")
    check_whole(report)
    # Its model takes one prompt, and no labels.
    assert not_applicable(report) == {"keeps all", "generate", "padding", "beside text", "answers"}
    assert report["padding"].detail == "it takes one prompt at a time"


def test_a_model_in_bfloat16(acme: Any) -> None:
    """What is held in float32 says so."""
    report = of_class("AcmeVideoForCausalLM", host="acme_host:HOST", dtype=torch.bfloat16)
    check_whole(report)
    for name in ("chunks", "batch of videos", "batch"):
        assert "the model is in torch.bfloat16" in report[name].detail


def test_a_live_model(acme: Any) -> None:
    from acme_host.modeling import tiny_model

    said: list[Outcome] = []
    model, processor = tiny_model(), acme.HOST.processor(Path())
    report = certify(
        model, processor, host="acme_host:HOST", only=["order", "budget"], told=said.append
    )
    assert [each.name for each in said] == ["budget", "order"] and report.passed
    with pytest.raises(ValueError, match=r"only: got \['odour'\], wanted some of \['load'"):
        certify(model, processor, host="acme_host:HOST", only=["odour"])
    import bvllm_adapters as bvllm

    bvllm.wrap(model, max_tokens=3, host="acme_host:HOST")
    with pytest.raises(ValueError, match="model: got a wrapped model, wanted one that is not"):
        certify(model, processor)


def test_a_host_that_makes_no_tiny_model(acme: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(acme.HOST.__class__, "tiny")
    with pytest.raises(HostError, match=r"has no `tiny\(folder, name\)`.*wanted --model FOLDER"):
        of_class("AcmeVideoForCausalLM", host="acme_host:HOST")
    with pytest.raises(ValueError, match="tiny: got Gemma3ForConditionalGeneration, wanted one of"):
        of_class("Gemma3ForConditionalGeneration", host="bvllm_transformers:HOST")


def test_a_model_of_another_class(acme: Any, tmp_path: Path) -> None:
    acme.HOST.tiny(tmp_path, "AcmeVideoForCausalLM")
    report = of_class("Other", tmp_path, host="acme_host:HOST", only=["load"])
    assert "got a AcmeVideoForCausalLM, wanted a Other" in report["load"].detail


def test_the_report() -> None:
    def raises(error: Exception) -> Any:
        def run(_: object) -> str:
            raise error

        return run

    checks = [
        Check("fine", "1", "all is well", lambda _: "3 things"),
        Check("wrong", "2", "two", raises(AssertionError("got 1,\n wanted 2"))),
        Check("odd", "", "no rule", raises(ZeroDivisionError("division by zero"))),
        Check("none", "3", "three", raises(NotApplicable("there are none"))),
    ]
    report = Report("Model", "some:HOST", tuple(check.outcome(None) for check in checks))
    states = ["passed", "failed", "failed", "not applicable"]
    assert [each.state for each in report.outcomes] == states
    assert str(report).splitlines() == [
        "passed         fine              line 1     all is well: 3 things",
        "failed         wrong             line 2     two: got 1, wanted 2",
        "failed         odd                          no rule: raised ZeroDivisionError: "
        "division by zero",
        "not applicable none              line 3     three: there are none",
        "Model by some:HOST: 1 passed, 2 failed, 1 not applicable",
    ]
    assert not report.passed and [each.name for each in report.failures] == ["wrong", "odd"]
    with pytest.raises(AssertionError, match=r"Model: 2 checks failed\nfailed +wrong"):
        report.raise_for_failures()
    with pytest.raises(KeyError, match="got no such check, wanted one of"):
        report["nothing"]
    kept = Report("Model", "some:HOST", (report["none"],))
    assert not kept.passed  # nothing was looked at
    assert json.loads(json.dumps(report.to_dict()))["outcomes"][1]["detail"] == "got 1, wanted 2"


def test_the_command(
    acme: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import bvllm_adapters.certify.run as run

    monkeypatch.setattr(
        run, "CHECKS", [check for check in CHECKS if check.name in ("order", "look")]
    )
    command = ["hosts", "--certify", "AcmeVideoForCausalLM", "--host", "acme_host:HOST"]
    assert main(command) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("passed         look") and out[-1].endswith(
        "2 passed, 0 failed, 0 not applicable"
    )
    acme.HOST.tiny(tmp_path, "AcmeVideoForCausalLM")
    monkeypatch.setattr(acme.HOST.__class__, "look", lambda self, model, pixels: None)
    assert main([*command, "--model", str(tmp_path), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["passed"]) == ("AcmeVideoForCausalLM", False)
    assert [each["state"] for each in told["outcomes"]] == ["failed", "failed"]


@pytest.mark.parametrize("name", ["--json", "--model=x", "--host=a:B", "--device=cpu"])
def test_what_goes_with_certify_alone(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hosts", name]) == 1
    wanted = name.split("=")[0]
    assert f"{wanted}: got it without --certify, wanted both" in capsys.readouterr().err


def test_it_needs_no_hypothesis() -> None:
    """Whoever certifies from a shell may not have it."""
    import subprocess

    code = "import sys; sys.modules['hypothesis'] = None; import bvllm_adapters.certify"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
