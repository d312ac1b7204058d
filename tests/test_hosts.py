"""Finding hosts, wrapping and unwrapping, on a third party's host that is really installed."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model

import bvllm_adapters as bvllm
from bvllm_adapters.hosts.find import find_host, host_of, list_hosts
from bvllm_adapters.hosts.host import HostError

ROOT = Path(__file__).parents[1]
QUESTION = torch.tensor([101, 2054, 102])


@pytest.fixture(scope="session")
def acme_site(tmp_path_factory):
    """A folder into which pip has installed examples/third_party_host."""
    work = tmp_path_factory.mktemp("acme")
    source = shutil.copytree(ROOT / "examples" / "third_party_host", work / "source")
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
            "--no-build-isolation", "--target", str(work / "site"), str(source),
        ],
        check=True,
        timeout=300,
    )  # fmt: skip
    return work / "site"


@pytest.fixture
def acme(acme_site, monkeypatch):
    """acme_host's modeling module, with its distribution on the path."""
    monkeypatch.syspath_prepend(str(acme_site))
    import acme_host.modeling

    return acme_host.modeling


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Publish a made-up distribution: its module's code and the model class that it claims."""

    def make(name, claims, code):
        (tmp_path / f"{name}.py").write_text(code)
        info = tmp_path / f"{name}-2.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0\n")
        (info / "entry_points.txt").write_text(f"[bvllm_adapters.hosts]\n{claims} = {name}:HOST\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    return make


@pytest.fixture(autouse=True)
def seeded():
    """Queries of a new tokenizer are random, and may choose one frame of two."""
    torch.manual_seed(0)


def run(model, acme, frames=12):
    pixels = torch.randn(frames, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(
            input_ids=torch.tensor([[3, 4, acme.VIDEO, 5]]), pixels=pixels, question_ids=QUESTION
        ).logits


def run_text_only(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[3, 4, 5]]), question_ids=QUESTION).logits


# --- finding -------------------------------------------------------------------------------------


def test_listing_names_distributions_and_imports_no_host(acme_site):
    code = (
        "import sys, bvllm_adapters as b\n"
        "print([(h.name, h.value, h.distribution) for h in b.list_hosts()])\n"
        "assert not {'acme_host', 'bvllm_qwen2', 'timm', 'decord'} & set(sys.modules)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(acme_site)},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "('AcmeVideoForCausalLM', 'acme_host:HOST', 'acme-host 1.0')" in out
    assert "'BvllmQwen2ForConditionalGeneration', 'bvllm_qwen2:HOST', 'bvllm-adapters" in out


def test_who_published_is_read_once_for_all_its_hosts(monkeypatch):
    """It takes longer than all else, and every call that looks for a host lists them."""
    from types import SimpleNamespace

    from bvllm_adapters.hosts import find

    read = []

    class Published:
        version = "1.0"

        @property
        def name(self):
            read.append(1)
            return "some"

    dist = Published()
    entries = [SimpleNamespace(name=f"M{i}", value="some:HOST", dist=dist) for i in range(9)]
    monkeypatch.setattr(find, "entry_points", lambda group: entries)
    assert {str(info) for info in list_hosts()} == {"some:HOST of some 1.0"}
    assert len(list_hosts()) == 9 and len(read) == 2


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, bvllm_adapters\n"
        "print({'torch', 'transformers', 'timm', 'decord', 'av', 'bvllm_qwen2'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_every_public_name_is_there():
    for name in bvllm.__all__:
        assert getattr(bvllm, name).__name__ == name
    assert set(bvllm.__all__) <= set(dir(bvllm))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        bvllm.nonsense  # noqa: B018


def test_a_subclass_of_a_served_class_is_served(acme):
    class Mine(acme.AcmeVideoForCausalLM):
        pass

    model = Mine(acme.tiny_model().config)
    assert host_of(model).__class__.__name__ == "AcmeHost"


def test_an_unknown_class_is_answered_with_the_known_ones():
    with pytest.raises(HostError, match=r"no host serves a Linear or .*'BvllmQwen2For"):
        bvllm.wrap(torch.nn.Linear(2, 2), max_tokens=3)
    with pytest.raises(HostError, match=r"no host serves the model class Nobody; .*'BvllmQwen2For"):
        find_host("Nobody")
    for ask in (lambda: find_host("Nobody"), lambda: host_of(torch.nn.Linear(2, 2))):
        with pytest.raises(
            HostError, match=r"install the package .* host='module:OBJECT' .*hosts`"
        ):
            ask()


def test_two_claims_fail_only_when_that_name_is_asked_for(publish, acme):
    publish("dupe", "AcmeVideoForCausalLM", "from acme_host import HOST")
    assert len(list_hosts()) >= 3
    with pytest.raises(
        HostError, match=r"several hosts.*acme_host:HOST of acme-host 1.0, dupe:HOST of dupe 2.0"
    ):
        find_host("AcmeVideoForCausalLM")
    assert bvllm.wrap(acme.tiny_model(), max_tokens=3, host="dupe:HOST")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import not_there", r"host Odd \(odd:HOST of odd 2.0\) is broken: ModuleNotFoundError"),
        ("1 / 0", r"odd 2.0\) is broken: ZeroDivisionError"),
        ("", r"odd 2.0\) is broken: AttributeError"),
        ("class H: api = 0\nHOST = H()", r"odd 2.0\) speaks host API 0, this is 3"),
        (
            "class H: api = 2\nHOST = H()",
            r"odd 2.0\) speaks host API 2, this is 3: look\(\) gives FrameFeatures",
        ),
        ("class H: api = 3\nHOST = H()", r"odd 2.0\) is broken: it lacks \['overrides', 'load'"),
    ],
)
def test_a_broken_host_says_whose_it_is(publish, code, message, monkeypatch):
    publish("odd", "Odd", code)
    monkeypatch.delitem(sys.modules, "odd", raising=False)
    with pytest.raises(HostError, match=message + r".*; update odd, or uninstall it"):
        find_host("Odd")
    with pytest.raises(HostError, match=r"; check host='module:OBJECT', or leave it out"):
        find_host("odd:NOTHING")
    monkeypatch.delitem(sys.modules, "odd", raising=False)
    find_host("BvllmQwen2ForConditionalGeneration")  # the others go on


# --- wrapping ------------------------------------------------------------------------------------


def test_unwrapping_restores_every_bit(acme):
    """Contract, line 10."""
    model = acme.tiny_model()
    cls, keys, logits, text = type(model), list(model.state_dict()), run(model, acme), None
    text = run_text_only(model)
    assert bvllm.wrap(model, max_tokens=10) is model
    assert run(model, acme).shape[1] == 3 + 10
    assert torch.equal(run_text_only(model), text)
    assert bvllm.unwrap(model) is model
    assert type(model) is cls and list(model.state_dict()) == keys
    assert torch.equal(run(model, acme), logits)


def test_the_budget_holds_for_any_number_of_frames(acme):
    model = bvllm.wrap(acme.tiny_model(), max_tokens=5)
    for frames in (1, 2, 7, 60):
        assert run(model, acme, frames).shape[1] == 3 + min(5, 4 * min(frames, 8))


def test_a_deep_copy_of_a_wrapped_model_is_independent(acme):
    model = bvllm.wrap(acme.tiny_model(), max_tokens=10)
    twin = copy.deepcopy(model)
    before = run(model, acme)
    assert torch.equal(run(twin, acme), before)
    bvllm.unwrap(twin)
    assert torch.equal(run(model, acme), before)


def test_a_wrapped_model_is_pickled(acme):
    model = bvllm.wrap(acme.tiny_model(), max_tokens=10)
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(run(twin, acme), run(model, acme))
    assert type(bvllm.unwrap(twin)) is type(bvllm.unwrap(model))
    assert torch.equal(run(twin, acme), run(model, acme))


def test_a_saved_wrapped_model_is_found_whole(acme, tmp_path):
    model = bvllm.wrap(acme.tiny_model(), max_tokens=10)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["AcmeVideoForCausalLM"]
    # The host's own loader reads its part as if nothing had been wrapped.
    plain = acme.AcmeVideoForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(run(plain, acme), run(acme.tiny_model(), acme))
    again = bvllm.load(tmp_path)
    assert not again.training
    assert torch.equal(run(again, acme), run(model, acme))
    assert torch.equal(run(model, acme), run(again, acme))  # saving changed nothing


def test_an_adapter_on_a_fresh_copy_gives_the_same_bits(acme, tmp_path):
    """Contract, line 12."""
    model = bvllm.wrap(acme.tiny_model(), max_tokens=10)
    bvllm.save_adapter(model, tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".safetensors"}
    fresh = bvllm.wrap(acme.tiny_model(), adapter=tmp_path)
    assert torch.equal(run(fresh, acme), run(model, acme))
    tighter = bvllm.wrap(acme.tiny_model(), adapter=tmp_path, max_tokens=4)
    assert run(tighter, acme).shape[1] == 3 + 4


def test_dtype_and_training_mode_follow_the_model(acme):
    model = bvllm.wrap(acme.tiny_model().to(torch.bfloat16).train(), max_tokens=10)
    assert model.balanced_tokenizer.dtype == torch.bfloat16
    assert model.balanced_tokenizer.training


def test_offloaded_weights(acme):
    """As under device_map: the embeddings' weights are on the meta device between calls."""
    wanted = run(bvllm.wrap(acme.tiny_model(), max_tokens=6), acme).shape
    model = acme.tiny_model()
    cpu_offload(model, execution_device="cpu")
    assert model.get_input_embeddings().weight.is_meta
    bvllm.wrap(model, max_tokens=6)
    assert {p.device.type for p in model.balanced_tokenizer.parameters()} == {"cpu"}
    assert run(model, acme).shape == wanted


def test_packed_weights(acme):
    """As with 4-bit weights, which are uint8: the tokenizer takes the embeddings' dtype."""
    model = acme.tiny_model().to(torch.bfloat16)
    packed = torch.zeros(4, dtype=torch.uint8)
    for layer in model.language_model.model.layers:
        layer.mlp.down_proj.weight = torch.nn.Parameter(packed, requires_grad=False)
    bvllm.wrap(model, max_tokens=6)
    assert {p.dtype for p in model.balanced_tokenizer.parameters()} == {torch.bfloat16}


# peft asks transformers for a name that transformers is about to change.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_peft_model_is_wrapped_through_its_base(acme):
    peft_model = get_peft_model(acme.tiny_model(), LoraConfig(target_modules=["q_proj"], r=2))
    assert bvllm.wrap(peft_model, max_tokens=6) is peft_model
    assert run(peft_model, acme).shape[1] == 3 + 6
    bvllm.unwrap(peft_model)
    assert run(peft_model, acme).shape[1] == 3 + 12 * 16


def test_an_untrained_tokenizer_is_said_to_be(acme, caplog):
    with caplog.at_level(logging.WARNING):
        bvllm.wrap(acme.tiny_model(), max_tokens=6)
    assert "untrained" in caplog.text


def test_ask_reads_a_real_video_and_traces_it(acme):
    model = acme.tiny_model()
    # One frame is enough for the budget, however few the random queries choose.
    config = replace(host_of(model).config(model), tokens_per_frame=10, max_tokens=10)
    bvllm.wrap(model, config=config)
    processor = host_of(model).processor(Path())
    clip = ROOT / "examples" / "big_buck_bunny.mp4"
    answer = bvllm.ask(model, clip, "What?", processor=processor, max_new_tokens=3)
    trace = answer.trace
    assert (trace.frames_decoded, trace.num_tokens, trace.max_tokens) == (6, 10, 10)
    assert sum(frame.tokens for frame in trace.frames) == 10
    assert sum(frame.choices for frame in trace.frames) == 8
    assert [frame.second for frame in trace.frames] == [float(f.frame) for f in trace.frames]
    assert all(abs(sum(frame.weights.values()) - 1) < 1e-3 for frame in trace.frames)
    assert {"decode", "preprocess", "tower", "selector", "sampler", "prefill", "generate"} <= set(
        trace.seconds
    )
    assert json.loads(json.dumps(trace.to_dict()))["num_tokens"] == 10
    assert "10 visual tokens of a budget of 10" in str(trace)
    assert bvllm.ask(model, clip, "?", processor=processor, max_tokens=3).trace.num_tokens == 3


# --- what is refused -----------------------------------------------------------------------------


def test_a_file_does_not_pick_what_is_imported(tmp_path, monkeypatch):
    """config.json may name a class that is published, never a module."""
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["planted:HOST"]}))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(bvllm.HostError, match="no host serves the model class planted:HOST"):
        bvllm.load(tmp_path)
    with pytest.raises(SystemExit, match="imported"):
        bvllm.load(tmp_path, host="planted:HOST")  # the caller may


def test_wrapping_twice_and_unwrapping_what_is_not_wrapped(acme):
    model = acme.tiny_model()
    with pytest.raises(ValueError, match="model: got a AcmeVideoForCausalLM that is not wrapped"):
        bvllm.unwrap(model)
    bvllm.wrap(model, max_tokens=6)
    with pytest.raises(ValueError, match="model: got a wrapped model"):
        bvllm.wrap(model, max_tokens=6)


def test_a_refused_wrap_leaves_the_model_as_it_was(acme, tmp_path):
    model = acme.tiny_model()
    keys = list(model.state_dict())
    config = bvllm.BalancedTokenizerConfig(
        vision_width=24, llm_width=33, qformer_width=8, qformer_layers=1, qformer_heads=2
    )
    with pytest.raises(ValueError, match="llm_width: got 33, wanted 32 as the model has"):
        bvllm.wrap(model, config=config)
    with pytest.raises(ValueError, match="config: got it beside max_tokens"):
        bvllm.wrap(model, config=config, max_tokens=6)
    with pytest.raises(ValueError, match="max_tokens: got 0"):
        bvllm.wrap(model, max_tokens=0)
    with pytest.raises(FileNotFoundError, match=r"holds no adapter\.json"):
        bvllm.wrap(model, adapter=tmp_path)
    assert list(model.state_dict()) == keys and type(model) is acme.AcmeVideoForCausalLM


def test_an_adapter_of_another_host_or_format_is_refused(acme, tmp_path):
    bvllm.save_adapter(bvllm.wrap(acme.tiny_model(), max_tokens=6), tmp_path)
    about = json.loads((tmp_path / "adapter.json").read_text())
    (tmp_path / "adapter.json").write_text(json.dumps(about | {"host": "SomebodyElse"}))
    with pytest.raises(ValueError, match="belongs to a SomebodyElse, wanted one for a AcmeVideo"):
        bvllm.wrap(acme.tiny_model(), adapter=tmp_path)
    (tmp_path / "adapter.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(ValueError, match="is of format 99, wanted 2"):
        bvllm.wrap(acme.tiny_model(), adapter=tmp_path)


def test_asking_a_model_without_tokenizer_or_checkpoint_is_refused(acme):
    model = acme.tiny_model()
    with pytest.raises(ValueError, match="without BalancedTokenizer; wrap it first"):
        bvllm.ask(model, "clip.mp4", "?")
    with pytest.raises(ValueError, match="without BalancedTokenizer; wrap it first"):
        bvllm.save_adapter(model, "nowhere")
    with pytest.raises(ValueError, match="processor: got None"):
        bvllm.ask(bvllm.wrap(model, max_tokens=3), "clip.mp4", "?")


def test_loading_a_folder_without_architectures_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        bvllm.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(HostError, match="names no architectures"):
        bvllm.load(tmp_path)


def test_nothing_is_downloaded_when_offline(monkeypatch, tmp_path):
    code = "import bvllm_adapters as b\nb.load('nobody/nothing-here')"
    out = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert out.returncode == 1
    assert "neither a folder here nor a hub id that could be had" in out.stderr
