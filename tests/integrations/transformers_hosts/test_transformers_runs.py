"""`bvllm train` on transformers' own models: their chat format, whole runs, what comes out."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asked
import numpy as np
import processors
import pytest
import torch
from media import write_video
from PIL import Image
from tiny import family

import bvllm_adapters as bvllm
from bvllm_adapters.cli.main import main
from bvllm_adapters.hosts.base import tokenizer_of
from bvllm_adapters.hosts.host import HostError
from bvllm_adapters.question import asking
from bvllm_adapters.training.config import TrainingConfig
from bvllm_adapters.training.dry_run import dry_run
from bvllm_adapters.training.rows import Source, read_rows
from bvllm_adapters.training.run import prepared, train
from bvllm_adapters.training.samples import Collate, Samples, Skipped
from bvllm_adapters.video.read import read_video
from bvllm_transformers.training import TransformersTraining

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is:FutureWarning"),
]
NAMES = pytest.mark.parametrize("name", processors.PROCESSORS)
SMALL = {"qformer_width": 16, "qformer_layers": 1, "qformer_heads": 2, "max_tokens": 12}
SELECTOR = {"selector": "learned", "num_frames": 3, **SMALL}
SAMPLED = {**SELECTOR, "sampler": "qformer", "projection": "mlp", "tokens_per_frame": 3}


def talk(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    said = [{"from": "gpt" if i % 2 else "human", "value": turn} for i, turn in enumerate(turns)]
    return [*([] if system is None else [{"from": "system", "value": system}]), *said]


ROWS: list[dict[str, Any]] = [
    {"id": "one", "video": "blocks.mp4",
     "conversations": talk("<video>\nWhere is the tree?", "There is none.")},
    {"id": "image", "image": "noise.png",
     "conversations": talk("What is this?\n<image>", "Noise.", "Are you sure?", "Yes.")},
    {"id": "words", "conversations": talk("How are you?", "Well.")},
    {"id": "system", "video": "blocks.mp4",
     "conversations": talk("<video>\nWhat moves?", "Blocks.", system="Be brief.")},
    {"id": "several", "video": ["blocks.mp4", "blocks.mp4"], "image": "noise.png",
     "conversations": talk("<video> beside <image>\nAlike?", "No.", "And <video>?", "A bit.")},
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_video(tmp_path / "blocks.mp4")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    return tmp_path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = processors.write(name, tmp_path_factory.mktemp(name))
        return made[name]

    return of


def configured(folder: Path, model: Path, **fields: Any) -> TrainingConfig:
    given = {
        "stage": "alignment", "model": str(model), "data": [{"file": folder / "rows.json"}],
        "output": folder / "run", "learning_rate": 1e-2, "schedule": "constant",
        "global_batch": 2, "warmup": 0.0, "epochs": 1, "precision": "fp32", "workers": 0,
        "log_every": 1, "save_every": 100, "max_skipped": 0.0, "tokenizer": SELECTOR,
    }  # fmt: skip
    return TrainingConfig.from_dict({**given, **fields})


def training(name: str, **how: Any) -> tuple[Any, TransformersTraining]:
    model = asked.wrapped(name, **{**SELECTOR, **how})
    return model, TransformersTraining(processors.processor(name), model)


def samples(folder: Path, host: TransformersTraining, **how: Any) -> Samples:
    return Samples(read_rows([Source(folder / "rows.json", folder)]), host, **how)


def rows_of(name: str) -> int:
    """How many of ROWS can be learned from: InternVL takes one image or video of each."""
    return len(ROWS) - (name == "internvl")


def words(name: str, ids: torch.Tensor) -> str:
    text: str = processors.processor(name).tokenizer.decode(ids.tolist())
    return text


@NAMES
def test_a_row_is_the_prompt_that_its_processor_makes(name: str, folder: Path) -> None:
    _, host = training(name)
    example: Any = samples(folder, host)[0, 0]
    video = read_video(folder / "blocks.mp4", fps=1.0)
    messages = processors.messages(video.frames, "Where is the tree?")
    messages.append({"role": "assistant", "content": [{"type": "text", "text": "There is none."}]})
    processor = processors.processor(name)
    own = {**asked.settings(video.frames), "do_resize": True}
    milliseconds = (video.seconds * 1000).round().astype(int)
    pairs = np.repeat(video.seconds.reshape(-1, 2).mean(axis=1), 2)  # a pair has one time
    if name.startswith("qwen"):
        milliseconds = (pairs * 1000).round().astype(int)
    own["video_metadata"][0][0] |= {
        "fps": 1000, "frames_indices": milliseconds.tolist(),
        "total_num_frames": int(milliseconds[-1]) + 1, "duration": (milliseconds[-1] + 1) / 1000,
    }  # fmt: skip
    # In pictures of the size that the budget has room for.
    if name.startswith("qwen"):
        grid = example.visuals[0].pixels.shape[1:3]
        size = (grid[0] * 4, grid[1] * 4)
        frames = [np.asarray(Image.fromarray(f).resize(size[::-1])) for f in video.frames]
        messages[0]["content"][0]["video"] = np.stack(frames)
        own["do_resize"] = False
    wanted = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs=own
    )
    assert example.input_ids.equal(wanted["input_ids"][0])
    inputs = host.inputs([example])
    assert set(inputs) == set(wanted) - {"input_ids", "attention_mask"}
    for key, value in wanted.items():
        if key in inputs and "pixel" not in key:
            assert torch.as_tensor(inputs[key]).equal(torch.as_tensor(value)), key
    # What is learned is the answer and its end.
    learned = example.labels != -100
    assert words(name, example.input_ids[learned]) == "There is none.<|im_end|>"
    assert example.labels[learned].equal(example.input_ids[learned])


@NAMES
def test_all_kinds_of_rows(name: str, folder: Path) -> None:
    model, host = training(name)
    made: list[Any] = [samples(folder, host)[0, i] for i in range(rows_of(name))]
    assert not [str(one) for one in made if isinstance(one, Skipped)]
    model.train()
    for example in made:
        learned = example.labels != -100
        said = words(name, example.input_ids[learned])
        own = [turn["value"] for turn in ROWS[made.index(example)]["conversations"]]
        answers = own[1::2] if len(own) % 2 == 0 else own[2::2]
        assert said == "".join(f"{answer}<|im_end|>" for answer in answers)
        inputs = Collate(host)([example])
        questions = inputs.pop("questions")
        for gone in ("seeds", "skipped", "drawn"):
            inputs.pop(gone)
        seen = asked.seen_by_decoder(model)
        with asking(questions), torch.no_grad():
            assert model(**inputs, use_cache=False).loss.isfinite()
        config = model.config
        visual = {getattr(config, "image_token_id", -1), getattr(config, "video_token_id", -1)}
        places = sum(int(i) in visual for i in example.input_ids)
        assert asked.lengths(seen)[-1] <= len(example.input_ids) - places + 12
    assert "Be brief." in words(name, made[3].input_ids)
    several = [visual.kind for visual in made[-1].visuals]
    assert several == ["video", "image", "video"][: 1 if name == "internvl" else 3]


def test_what_is_too_long_is_cut_behind_its_media(folder: Path) -> None:
    _, host = training("qwen3_vl")
    whole: Any = samples(folder, host)[0, 0]
    short = len(host.ids(host.prompt(["<video>\nWhere is the tree?", "There is none."])))
    cut: Any = samples(folder, host, max_length=short - 6)[0, 0]
    assert cut.input_ids.equal(whole.input_ids[:-6]) and cut.labels.equal(whole.labels[:-6])
    assert len(cut.of_ids["mm_token_type_ids"]) == len(cut.input_ids)
    gone = samples(folder, host, max_length=short - 20)[0, 0]
    assert "max_length" in str(gone)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "internvl"])
def test_a_batch_is_its_rows(name: str, folder: Path) -> None:
    how = {"sampler": "qformer", "projection": "mlp", "tokens_per_frame": 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, host = training(name, **how)
    made: list[Any] = [samples(folder, host)[0, i] for i in range(rows_of(name))]

    def loss(examples: Sequence[Any]) -> tuple[float, int]:
        inputs = Collate(host)(examples)
        questions = inputs.pop("questions")
        for gone in ("seeds", "skipped", "drawn"):
            inputs.pop(gone)
        with asking(questions), torch.no_grad():
            found = model(**inputs, use_cache=False).loss
        return float(found), int((inputs["labels"] != -100).sum())

    singles = [loss([example]) for example in made]
    count = sum(labels for _, labels in singles)
    wanted = sum(value * labels for value, labels in singles) / count
    assert loss(made) == (pytest.approx(wanted, abs=2e-5), count)


def test_videos_of_unlike_lengths_are_refused_where_they_are_stacked(folder: Path) -> None:
    _, host = training("llava_onevision")
    rows = [
        {"video": ["blocks.mp4", "noise.png"], "conversations": talk("<video><video>?", "No.")},
        {"video": "noise.png", "conversations": talk("<video>?", "No.")},
        {"video": "blocks.mp4", "conversations": talk("<video>?", "No.")},
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    found = samples(folder, host)
    assert "video: got several of [1, 4] frames, wanted one length" in str(found[0, 0])
    with pytest.raises(ValueError, match=r"got several of \[1, 4\] frames.*batch_per_device: 1"):
        host.inputs([found[0, 1], found[0, 2]])  # type: ignore[list-item]
    _, other = training("internvl")  # where no prompt tells whose frames they are
    assert "got 2 images and videos, wanted 1 at most" in str(samples(folder, other)[0, 0])


def test_what_cannot_be_trained_is_refused_by_name(folder: Path, checkpoints: Any) -> None:
    model = asked.bvllm.wrap(family("gemma4").model(), host=asked.HOST)
    with pytest.raises(HostError, match="whose pixels are of a kind of their own"):
        TransformersTraining(processors.processor("internvl"), model)
    model, _ = training("internvl")
    processor = processors.processor("internvl")
    processor.chat_template = None
    with pytest.raises(HostError, match="processor: got one without chat_template"):
        TransformersTraining(processor, model)
    processor = processors.processor("internvl")
    processor.video_token = "<clip>"
    with pytest.raises(HostError, match="processor: got '<clip>' for videos"):
        TransformersTraining(processor, model)
    # Without a word about it frames are chosen without training.
    config = configured(folder, checkpoints("internvl"), tokenizer={"max_tokens": 12})
    with pytest.raises(ValueError, match=r"train: got \['frame_selector', 'projection'\], of"):
        train(config)
    config = configured(folder, checkpoints("internvl"), train=["spatial_sampler"])
    with pytest.raises(ValueError, match=r"train: got \['spatial_sampler'\], of which"):
        train(config)


@pytest.mark.parametrize("tokenizer", [SELECTOR, SAMPLED], ids=["selector", "sampler"])
@NAMES
def test_a_run_trains_what_is_named_and_its_adapter_answers(
    name: str, tokenizer: dict[str, Any], folder: Path, checkpoints: Any
) -> None:
    parts = ["frame_selector"]
    if "sampler" in tokenizer:
        parts += ["spatial_sampler", "projection"]
    config = configured(
        folder, checkpoints(name), tokenizer=tokenizer, train=parts, max_steps=2,
        gradient_checkpointing=True, max_skipped=0.3,
    )  # fmt: skip
    told = list(dry_run(config))
    assert any("visual tokens at most" in line for line in told)
    model: Any = train(config)
    fresh = bvllm.load(checkpoints(name))
    before = fresh.state_dict()
    assert not [n for n, v in model.state_dict().items() if n in before and not v.equal(before[n])]
    again = bvllm.wrap(fresh, adapter=folder / "run")
    ours, theirs = (tokenizer_of(one).state_dict() for one in (model, again))
    assert ours.keys() == theirs.keys()
    assert all(value.equal(theirs[key]) for key, value in ours.items())
    how = {"processor": processors.processor(name), "max_new_tokens": 4}
    answers = [
        bvllm.ask(one, folder / "blocks.mp4", "What moves?", **how) for one in (model, again)
    ]
    assert answers[0].text == answers[1].text
    assert answers[0].trace.num_tokens == answers[1].trace.num_tokens <= 12


def test_instruction_tuning_with_and_without_a_tokenizer_that_learns(
    folder: Path, checkpoints: Any
) -> None:
    base = checkpoints("qwen2_5_vl")
    for i, tokenizer in enumerate([SAMPLED, {"selector": "coverage", "max_tokens": 12}]):
        config = configured(
            folder, base, stage="instruction", lora={"rank": 4, "alpha": 8}, max_steps=2,
            tokenizer=tokenizer, output=folder / f"tuned{i}",
        )  # fmt: skip
        model: Any = train(config)
        tuned = {n for n, p in model.named_parameters() if p.requires_grad and ".lora_" in n}
        assert tuned and all(".language_model.layers." in n for n in tuned)
        again = bvllm.wrap(bvllm.load(base), adapter=folder / f"tuned{i}")
        inputs = asked.prompt("qwen2_5_vl")
        with asking("What happens?"), torch.no_grad():
            wanted, found = model(**inputs).logits, again(**inputs).logits
            plain = bvllm.load(base)(**inputs).logits
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        assert not plain[:, -1].allclose(wanted[:, -1], atol=1e-3)


def test_a_run_that_was_interrupted_goes_on(folder: Path, checkpoints: Any) -> None:
    own = {"max_steps": 4, "save_every": 2, "validation": [{"file": folder / "rows.json"}]}
    whole: Any = train(configured(folder, checkpoints("qwen3_vl"), **own))
    half = configured(folder, checkpoints("qwen3_vl"), **own, output=folder / "half")

    class Stop(Exception):
        pass

    from transformers import TrainerCallback

    class StopAt3(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                raise Stop

    with pytest.raises(Stop):
        train(half, callbacks=[StopAt3()])
    resumed: Any = train(half, resume=True)
    ours, theirs = (tokenizer_of(one).state_dict() for one in (whole, resumed))
    assert all(value.equal(theirs[name]) for name, value in ours.items())
    logged = json.loads((folder / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    assert [1 for entry in logged["log_history"] if "eval_loss" in entry]


def test_from_the_shell_in_bfloat16(
    folder: Path, checkpoints: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(checkpoints("llava_onevision"))
    config = configured(
        folder, checkpoints("llava_onevision"), precision="bf16", max_steps=1, max_skipped=0.5
    )
    config.save(folder / "run.yaml")
    assert main(["train", str(folder / "run.yaml")]) == 0
    capsys.readouterr()
    clip = str(folder / "blocks.mp4")
    assert main(["ask", clip, "What?", "--model", base, "--adapter", str(folder / "run")]) == 0
    assert capsys.readouterr().out.strip()


def test_what_workers_get_is_pickled_and_holds_no_model() -> None:
    _, host = training("qwen3_vl")
    again = pickle.loads(pickle.dumps(host))
    prompt = host.prompt(["<video>\nWhat?", "That."])
    assert again.ids(prompt) == host.ids(prompt)
    assert not [value for value in vars(host).values() if isinstance(value, torch.nn.Module)]


@pytest.mark.parametrize("lesson", ["frames", "sets"])
def test_a_selector_learns_from_answers_alone(lesson: str, folder: Path, checkpoints: Any) -> None:
    """It moves, and what reads the chosen frames does not."""
    config = configured(
        folder,
        checkpoints("qwen2_5_vl"),
        train=["frame_selector"],
        selector_learns=lesson,
        answer_reads=3,
        max_steps=2,
        data=[{"file": folder / "videos.json"}],
    )
    (folder / "videos.json").write_text(json.dumps([ROWS[0], ROWS[3]]))
    before = prepared(config)[0].state_dict()
    after = train(config).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("balanced_tokenizer.frame_selector.") for name in moved)
