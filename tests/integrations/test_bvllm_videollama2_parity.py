"""Numbers of upstream's own code, reproduced; see tests/data/videollama2/README.md."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from bvllm_videollama2 import HOST
from bvllm_videollama2.projectors import build_projector
from bvllm_videollama2.weights import load

HERE = Path(__file__).parents[1] / "data" / "videollama2"
# More recordings of the same layout, for whoever has some; the shipped ones are a part of two.
MORE = Path(os.environ.get("BVLLM_RECORDINGS", "none")) / "videollama2"
WHOLE = sorted(folder.parent for folder in MORE.glob("*/recorded.safetensors"))

# sample -> what is shown; the third image of "mixed_train" is upstream's dummy of a text-only row.
SAMPLES: dict[str, tuple[str, ...] | None] = {
    "video": ("video",),
    "video_train": ("video",),
    "image": ("image",),
    "text": None,
    "two": ("image", "video"),
    "batch_right": ("video", "image"),
    "batch_single0": ("video",),
    "batch_single1": ("image",),
    "mixed_train": ("video", "image", "dummy"),
}
TOLERANCE = 1e-4
# tokenizers says this to the Qwen2 tokenizer of transformers 5.0.
QWEN2_5_0 = "ignore:Deprecated in 0.9.0. BPE:DeprecationWarning"


class Recording:
    """A checkpoint and what upstream made of it, whole or thinned."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = load(folder, dtype=torch.float32)
        self.recorded = load_file(folder / "recorded.safetensors")
        image = self.recorded["pixels.image"]
        self.pixels = {"image": image, "dummy": torch.zeros_like(image[0])}
        if "pixels.video" in self.recorded:
            self.pixels["video"] = self.recorded["pixels.video"]
        else:
            # The video's pixels were not kept: NaN stands for them before the tower, behind it
            # what upstream's tower made of them.
            self.pixels["video"] = torch.full_like(image, torch.nan).expand(8, -1, -1, -1)
            self.model.get_vision_tower().register_forward_hook(self._recorded_features)

    def _recorded_features(self, tower: Any, args: Any, features: Tensor) -> Tensor:
        is_video = args[0].isnan().flatten(1).any(dim=1)
        known = self.recorded["video.tower_features"][0]
        return torch.where(
            is_video[:, None, None], known.repeat(len(features) // len(known), 1, 1), features
        )

    def images(self, sample: str) -> list[tuple[Tensor, str]] | None:
        kinds = SAMPLES[sample]
        if kinds is None:
            return None
        return [(self.pixels[k], "video" if k == "video" else "image") for k in kinds]

    def get(self, sample: str, name: str) -> Tensor | None:
        sample = "video" if sample == "video_train" and "labels" not in name else sample
        return self.recorded.get(f"{sample}.{name}")

    def inputs(self, sample: str) -> dict[str, Any]:
        names = ("input_ids", "attention_mask")
        return {name: self.get(sample, name) for name in names} | {"images": self.images(sample)}

    def check(self, sample: str, **got: Any) -> None:
        for name, value in got.items():
            wanted = self.recorded.get(f"{sample}.{name}")
            if wanted is None:
                continue
            assert value is not None, (sample, name)
            if value.is_floating_point():
                step = value.shape[-1] // max(1, wanted.shape[-1]) if value.dim() else 1
                value = value.reshape(wanted.shape) if not value.dim() else value[..., ::step]
                torch.testing.assert_close(
                    value, wanted, rtol=0, atol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
                )
            else:
                assert torch.equal(value.long(), wanted), (sample, name)


@pytest.fixture(
    scope="module",
    params=[HERE / "mistral_stc_connector", *WHOLE],
    ids=lambda folder: f"{folder.parents[1].name}-{folder.name}",
)
def recording(request: pytest.FixtureRequest) -> Recording:
    return Recording(request.param)


def test_weights_go_by_their_published_names(recording: Recording) -> None:
    folder = Path(recording.model.name_or_path)
    published = load_file(folder / "model.safetensors")
    live = recording.model.state_dict()
    assert set(live) == set(published)
    assert all(torch.equal(live[key], value) for key, value in published.items())


@torch.no_grad()
@pytest.mark.parametrize("sample", SAMPLES)
def test_prompts_features_logits_and_loss(recording: Recording, sample: str) -> None:
    model, inputs = recording.model, recording.inputs(sample)
    labels = recording.get(sample, "labels")
    if inputs["images"] is not None:
        recording.check(sample, mm_features=model.encode_images_or_videos(inputs["images"]))
    ids, mask, images = inputs.values()
    none, new_mask, cache, embeds, new_labels = model.prepare_inputs_labels_for_multimodal(
        ids, mask, "cache", labels, images
    )
    assert cache == "cache"
    assert (none is None) == (embeds is not None) == (images is not None)
    recording.check(
        sample, inputs_embeds=embeds, new_attention_mask=new_mask, new_labels=new_labels
    )
    output = model(**inputs, labels=labels, output_hidden_states=True)
    recording.check(
        sample,
        logits=output.logits,
        loss=output.loss,
        hidden_states=torch.stack(output.hidden_states),
    )
    if new_labels is not None:
        assert torch.equal(output.labels, new_labels)


@pytest.mark.parametrize(
    "sample", ["video", "image", "text", "two", "batch_single0", "batch_single1"]
)
def test_greedy_tokens(recording: Recording, sample: str) -> None:
    ids, mask, images = recording.inputs(sample).values()
    out = recording.model.generate(
        ids,
        images=images,
        attention_mask=mask,
        max_new_tokens=8,
        eos_token_id=None,
        pad_token_id=0,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    recording.check(sample, generate_ids=out.sequences, generate_scores=torch.stack(out.scores, 1))


@pytest.mark.filterwarnings(QWEN2_5_0)
@pytest.mark.parametrize("kind", ["video", "image", "text"])
def test_upstreams_inference_from_frames_to_tokens(recording: Recording, kind: Any) -> None:
    folder = Path(recording.model.name_or_path)
    wanted = json.loads((folder.parent / "prompts.json").read_text())[folder.name][kind]
    processor: Any = HOST.processor(folder)
    frames = load_file(folder.parent / "preprocess.safetensors")["frames_uint8"].numpy()
    if len(frames) < 8 and kind == "video":
        pytest.skip("the frames of this video are not in the clone")
    shown = {"video": frames[:8], "image": frames[:1], "text": None}[kind]
    ids = processor.ids(processor.prompt("What is the person in the video doing?", kind), kind)
    said = recording.model.generate(
        ids,
        images=None if shown is None else [(processor.pixels(shown), kind)],
        max_new_tokens=6,
        **processor.settings(recording.model),
    )
    assert said.tolist() == wanted["output_ids"]


@torch.no_grad()
@pytest.mark.parametrize("side", ["batch_left", "batch_right"])
def test_a_padded_batch_equals_its_samples_run_alone(recording: Recording, side: str) -> None:
    """Upstream's own numbers for left padding, and for generating behind right padding, are wrong;
    those for the samples alone are right."""
    inputs = recording.inputs("batch_right") | {
        name: recording.get(side, name) for name in ("input_ids", "attention_mask")
    }
    ids, mask, images = inputs.values()
    _, new_mask, *_ = recording.model.prepare_inputs_labels_for_multimodal(
        ids, mask, None, None, images
    )
    logits = recording.model(**inputs).logits
    settings: dict[str, Any] = {"max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 0}
    generated = recording.model.generate(
        ids, images=images, attention_mask=mask, do_sample=False, **settings
    )
    for row in range(2):
        alone = f"batch_single{row}"
        recording.check(alone, logits=logits[row, new_mask[row].bool()][None])
        recording.check(alone, generate_ids=generated[row][None])


@torch.no_grad()
def test_stages_of_the_projector(recording: Recording) -> None:
    stages: dict[str, Tensor] = {}
    projector = recording.model.get_model().mm_projector
    hooks = [
        stage.register_forward_hook(lambda m, a, out, n=name: stages.update({n: out}))
        for name, stage in projector.named_children()
    ]
    recording.model.encode_images_or_videos(recording.images("video"))
    for hook in hooks:
        hook.remove()
    for name in ("s1", "sampler", "s2", "readout"):
        wanted = recording.recorded.get(f"video.projector.{name}")
        if wanted is not None:
            torch.testing.assert_close(stages[name], wanted, rtol=0, atol=TOLERANCE)
    tower = recording.model.get_vision_tower()
    features = tower(recording.pixels["video"])[None]
    recording.check("video", tower_features=features)


@torch.no_grad()
def test_asking_for_hidden_states_leaves_the_tower_as_it_was(recording: Recording) -> None:
    """transformers 5 sets its capturing hooks twice on a tower that was called before the
    language model around it is asked for hidden states."""
    model, images = recording.model, [(recording.pixels["image"], "image")]
    tower = model.get_vision_tower()
    encoder = next(module for module in tower.modules() if isinstance(module, PreTrainedModel))
    encoder(recording.pixels["image"], output_hidden_states=True)  # sets the first hooks
    model(**recording.inputs("text"), output_hidden_states=True)  # sets the second
    recording.check("image", mm_features=model.encode_images_or_videos(images))


@torch.no_grad()
def test_stages_of_the_other_projector() -> None:
    folder = HERE / "qwen2_stc_connector_v35"
    recorded = load_file(folder / "recorded.safetensors")
    stage = {name: recorded[f"video.projector.{name}"] for name in ("s1", "sampler", "s2")}

    class Config:
        mm_projector_type, mm_hidden_size, hidden_size = "stc_connector_v35", 48, 64

    projector: Any = build_projector(Config())
    found = projector.load_state_dict(
        load_file(folder / "sampler_and_readout.safetensors"), strict=False
    )
    assert not found.unexpected_keys
    assert all(key.startswith(("s1.", "s2.")) for key in found.missing_keys)
    frames = stage["s1"].transpose(0, 1)[None]
    torch.testing.assert_close(projector.sampler(frames), stage["sampler"], rtol=0, atol=TOLERANCE)
    tokens = projector.readout(stage["s2"].permute(0, 2, 3, 1).reshape(1, 16, 64))
    torch.testing.assert_close(tokens, recorded["video.projector.readout"], rtol=0, atol=TOLERANCE)
