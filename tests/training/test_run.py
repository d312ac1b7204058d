"""Whole runs on tiny hosts, with real media: what they change, and what comes out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from runs import HOSTS, ROWS, SMALL, Interrupted, Watch, assert_same_steps, talk
from safetensors.torch import load_file, save_file

import bvllm_adapters as bvllm
from bvllm_adapters.training.run import prepared, train
from bvllm_qwen2.shim import BvllmQwen2Host

pytestmark = [
    # transformers 5.23 renames what peft 0.21 asks for.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
]
CLIP = Path(__file__).parents[2] / "examples" / "big_buck_bunny.mp4"


@pytest.mark.parametrize("host", [*HOSTS[:2], pytest.param(HOSTS[2], marks=pytest.mark.slow)])
def test_both_stages(host: str, configured: Any, hosts: dict[str, Path], tmp_path: Path) -> None:
    # Alignment moves what is named.
    watch = Watch()
    first = configured(host, max_steps=3, output=tmp_path / "aligned")
    aligned: Any = train(first, callbacks=[watch])
    named = tuple(f"balanced_tokenizer.{part}." for part in ("frame_selector", "projection"))
    assert watch.moved(aligned) == {name for name in watch.before if name.startswith(named)}
    assert watch.losses[-1] < watch.losses[0]
    assert watch.tower_modes == {False}
    assert len(set(watch.hooks)) == 1
    learned = {n: p.clone() for n, p in aligned.balanced_tokenizer.state_dict().items()}

    # Instruction tuning moves all but the tower and the language model's own weights.
    watch = Watch()
    # In steps small enough for Adam's first ones, which are of full length, not to overshoot.
    steps = {"learning_rate": 1e-3, "epochs": 6}
    config = configured(host, stage="instruction", adapter=str(tmp_path / "aligned"), **steps)
    model = train(config, callbacks=[watch])

    # It began with all that alignment had learned.
    for name, value in learned.items():
        assert torch.equal(watch.before[f"balanced_tokenizer.{name}"], value), name
    lora = {name for name in watch.before if ".lora_" in name}
    kinds = {name.split(".bvllm_lora.")[0].rpartition(".")[2] for name in lora}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    tokenizer = {name for name in watch.before if name.startswith("balanced_tokenizer.")}
    assert watch.moved(model) == tokenizer | lora
    assert watch.losses[-1] < watch.losses[0]
    assert watch.tower_modes == {False}

    # A fresh copy of the host with the adapter is the trained model; without, it is the host.
    fresh = bvllm.load(hosts[host])
    text = torch.arange(5, 12)[None]
    alone = fresh(text).logits
    bvllm.wrap(fresh, adapter=config.output)
    assert not torch.equal(fresh(text).logits, alone)
    assert_same(fresh, model, text)
    answers = [
        bvllm.ask(one, CLIP, "what?", processor=processor_of(one), max_new_tokens=3)
        for one in (fresh, model)
    ]
    assert answers[0].text == answers[1].text
    bvllm.unwrap(fresh)
    assert torch.equal(fresh(text).logits, alone)


def processor_of(model: Any) -> Any:
    from bvllm_adapters.hosts.find import host_of

    return host_of(model).processor(Path(model.name_or_path or model.config._name_or_path))


@torch.no_grad()
def assert_same(one: Any, other: Any, text: torch.Tensor) -> None:
    """Bit for bit, in text and in visual tokens."""
    assert torch.equal(one(text).logits, other(text).logits)
    ours, theirs = one.balanced_tokenizer.state_dict(), other.balanced_tokenizer.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_resumed_run_equals_uninterrupted_one(configured: Any, tmp_path: Path) -> None:
    config = configured(
        stage="instruction",
        lora={"rank": 4, "alpha": 8, "dropout": 0.1},
        max_steps=4,
        global_batch=2,
        batch_per_device=1,
        schedule="cosine",
        save_every=2,
        keep=None,
    )
    whole = train(config)
    state = {n: p.clone() for n, p in whole.state_dict().items()}

    broken = replace(config, output=tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        train(broken, callbacks=[Interrupted(step=3)])
    watch = Watch()
    resumed = train(broken, resume=True, callbacks=[watch])
    assert len(watch.losses) == 2
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, state[name]), name
    files = ("balanced_tokenizer.safetensors", "lora/adapter_model.safetensors")
    for file in files:
        one, other = load_file(config.output / file), load_file(broken.output / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_is_the_same_however_it_is_taken(configured: Any, tmp_path: Path) -> None:
    watches = []
    for fields in (
        {},
        {"batch_per_device": 1},
        {"batch_per_device": 2, "workers": 1},
        {"gradient_checkpointing": True},
    ):
        watches.append(Watch())
        output = tmp_path / str(len(watches))
        config = configured(stage="instruction", max_steps=2, output=output, **fields)
        train(config, callbacks=[watches[-1]])
    for watch in watches[1:]:
        assert_same_steps(watch, watches[0])


def test_unreadable_and_malformed_rows_are_skipped_by_name(
    configured: Any, data: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gone = {"id": "gone", "video": "gone.mp4", "conversations": talk("<video>what?", "a cat")}
    data.write([*ROWS, gone, {"id": "bad", "conversations": "nothing"}])
    watch = Watch()
    # A batch of five rows, and one of a row that is not there.
    for size in (5, 1):
        config = configured(
            max_skipped=0.4,
            global_batch=5,
            batch_per_device=size,
            max_steps=1,
            output=data.folder / f"run{size}",
        )
        caplog.clear()
        train(config, callbacks=[watch])
        told = [record.getMessage() for record in caplog.records]
        assert [m for m in told if "skipped" in m and "(id gone)" in m and "gone.mp4" in m]
        assert [m for m in told if "skipped" in m and "(id bad)" in m and "conversations" in m]
    assert watch.skipped == [1, 1]
    assert watch.losses[0] == pytest.approx(watch.losses[1], rel=1e-5)


def test_too_many_unreadable_rows_stop_a_run(configured: Any, data: Any) -> None:
    gone = {"id": "gone", "video": "gone.mp4", "conversations": talk("<video>what?", "a cat")}
    data.write([*ROWS, gone])
    with pytest.raises(ValueError, match=r"got 1 unreadable rows of 5, wanted 19\.00%.*gone\.mp4"):
        train(configured(max_skipped=0.19, global_batch=5, batch_per_device=5))


def test_too_many_malformed_rows_stop_a_run(configured: Any, data: Any) -> None:
    data.write([*ROWS, "nonsense"])
    with pytest.raises(ValueError, match=r"got 1 malformed rows of 5, wanted 19\.00%.*\[4\]"):
        train(configured(max_skipped=0.19))


def test_a_step_without_a_readable_row_changes_nothing(configured: Any, data: Any) -> None:
    gone = {"id": "gone", "video": "gone.mp4", "conversations": talk("<video>what?", "a cat")}
    data.write([gone])
    watch = Watch()
    config = configured(max_skipped=0.999, global_batch=1, batch_per_device=1, epochs=1)
    with pytest.raises(ValueError, match="got 1 unreadable rows of 1"):
        train(config)
    data.write([gone, ROWS[2]])
    config = configured(
        max_skipped=0.999, global_batch=1, batch_per_device=1, epochs=2, output=data.folder / "run"
    )
    model = train(config, callbacks=[watch])
    assert 0.0 in watch.losses
    assert all(bool(weight.isfinite().all()) for weight in model.state_dict().values())


def test_bfloat16_keeps_what_is_trained_in_float32(
    configured: Any, hosts: dict[str, Path], tmp_path: Path
) -> None:
    first = configured(precision="bf16", max_steps=2, output=tmp_path / "first")
    learned = train(first).balanced_tokenizer.state_dict()
    watch = Watch()
    second = configured(stage="instruction", adapter=str(first.output), precision="bf16")
    model = train(second, callbacks=[watch])
    dtypes = {p.dtype for p in model.parameters() if p.requires_grad}
    assert dtypes == {torch.float32}
    assert model.language_model.lm_head.weight.dtype == torch.bfloat16
    for name, value in learned.items():
        assert value.dtype == torch.float32
        assert torch.equal(watch.before[f"balanced_tokenizer.{name}"], value), name
    assert any(not torch.equal(value, value.bfloat16().float()) for value in learned.values())
    assert watch.losses[-1] < watch.losses[0]


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("linear", [0, 0.5, 1, 0.75, 0.5, 0.25]), ("cosine", [0, 0.5, 1, 0.8536, 0.5, 0.1464])],
)
def test_schedules(schedule: str, rates: list[float], configured: Any, data: Any) -> None:
    data.write([ROWS[2]])
    watch = Watch()
    config = configured(
        schedule=schedule,
        warmup=0.3,
        learning_rate=1.0e-3,
        global_batch=1,
        batch_per_device=1,
        epochs=6,
    )
    train(config, callbacks=[watch])
    assert watch.rates == pytest.approx([1e-3 * rate for rate in rates], abs=1e-7)


def test_an_output_folder_is_not_trained_over(configured: Any, data: Any) -> None:
    data.write([ROWS[2]])
    fields = {"global_batch": 1, "batch_per_device": 1, "epochs": 1}
    with pytest.raises(ValueError, match="resume: got no checkpoint"):
        train(configured(**fields), resume=True)
    train(configured(**fields))
    with pytest.raises(ValueError, match=r"output: got .*checkpoint-1"):
        train(configured(**fields))
    with pytest.raises(ValueError, match="resume: got another fps, seed than"):
        train(configured(**fields, fps=2.0, seed=1), resume=True)


def test_models_that_cannot_be_trained(
    configured: Any, hosts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = bvllm.wrap(bvllm.load(hosts["bvllm_qwen2"]))
    folder = hosts["bvllm_qwen2"].parent / "wrapped"
    wrapped.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"model: got .*wrapped, which is wrapped"):
        train(configured(model=str(folder)))
    monkeypatch.delattr(BvllmQwen2Host, "training")
    with pytest.raises(ValueError, match="whose host cannot be trained here"):
        train(configured())


def test_both_q_formers_begin_with_instructblip(configured: Any, tmp_path: Path) -> None:
    recorded = Path(__file__).parents[1] / "data" / "qformer_parity"
    sizes = json.loads((recorded / "tiny.config.json").read_text())
    weights = load_file(recorded / "tiny.lavis_weights.safetensors")
    state = {f"Qformer.{name[name.index('bert.') :]}": value for name, value in weights.items()}
    state["query_tokens"] = torch.randn(1, 8, sizes["hidden_size"])
    state |= {f"ln_vision.{kind}": torch.randn(64) for kind in ("weight", "bias")}
    save_file(state, tmp_path / "instructblip.safetensors")
    settings = {
        "num_frames": 4,
        "tokens_per_frame": 4,
        "qformer_width": sizes["hidden_size"],
        "qformer_layers": sizes["num_hidden_layers"],
        "qformer_heads": sizes["num_attention_heads"],
        "qformer_ffn_width": sizes["intermediate_size"],
        "cross_attention_frequency": sizes["cross_attention_freq"],
        "vocab_size": sizes["vocab_size"],
    }
    config = configured(
        tokenizer=settings,
        instructblip=str(tmp_path / "instructblip.safetensors"),
        precision="bf16",
    )
    model: Any = prepared(config)[0]
    for stage in (
        model.balanced_tokenizer.frame_selector,
        model.balanced_tokenizer.spatial_sampler,
    ):
        assert torch.equal(stage.queries, state["query_tokens"][0, :4])
        assert torch.equal(stage.norm.weight, state["ln_vision.weight"])
    trained = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"frame_selector", "projection"}


def test_the_selector_learns_on_what_a_scout_sees(configured: Any, tmp_path: Path) -> None:
    sizes = {"layers": [1, 1, 1, 1], "channels": [4, 4, 4, 8]}
    published = timm.create_model("resnet18", **sizes).state_dict()
    save_file(published, tmp_path / "resnet18.safetensors")
    scout = {"architecture": "resnet18", "image_size": 24, "width": 8, "model_args": sizes}
    watch = Watch()
    config = configured(
        tokenizer=SMALL | {"scout": scout}, scout=str(tmp_path / "resnet18.safetensors")
    )
    model: Any = train(config, callbacks=[watch])
    for name, value in model.balanced_tokenizer.scout.encoder.state_dict().items():
        assert torch.equal(value, published[name]), name
    prefix = "balanced_tokenizer.frame_selector."
    selector = {name for name in watch.before if name.startswith(prefix)}
    assert selector and selector <= watch.moved(model)
    # On another copy of the host it chooses and answers alike.
    other = bvllm.wrap(bvllm.load(configured().model), adapter=config.output)
    answers = [
        bvllm.ask(one, CLIP, "what?", processor=processor_of(one), max_new_tokens=3)
        for one in (model, other)
    ]
    assert answers[0].text == answers[1].text
    assert answers[0].trace.frames == answers[1].trace.frames
    assert answers[0].trace.tower_passes == len(answers[0].trace.frames)


def test_a_native_model_goes_on_with_its_own_tokenizer(configured: Any) -> None:
    host: Any = bvllm.load(configured().model)
    own = {name: value.clone() for name, value in host.balanced_tokenizer.state_dict().items()}
    for settings, most in (({}, host.balanced_tokenizer.config.max_tokens), ({"max_tokens": 7}, 7)):
        model: Any = prepared(configured(tokenizer=settings))[0]
        assert model.balanced_tokenizer.config.max_tokens == most
        for name, value in model.balanced_tokenizer.state_dict().items():
            assert torch.equal(value, own[name])


def test_alignment_takes_the_sampler_too(configured: Any) -> None:
    parts = ["frame_selector", "spatial_sampler", "projection"]
    model = prepared(configured(train=parts))[0]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    tokenizer = {n for n, _ in model.named_parameters() if n.startswith("balanced_tokenizer.")}
    assert trained == tokenizer
