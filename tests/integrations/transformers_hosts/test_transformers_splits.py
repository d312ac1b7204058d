"""Pixels that lie oddly, images alone and beside videos, and what is refused."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import transformers
from budgets import PLENTY, always_spliced, count, forward, greedy, wrapped
from prompts import batch, longer, placeholders
from tiny import INDEX, Inputs, available, build, family

import bvllm_adapters as bvllm
from bvllm_adapters.hosts import HostError
from bvllm_transformers.budget import budgeted
from bvllm_transformers.families import FAMILIES as SERVED
from bvllm_transformers.families import NOT_SERVED, check_served, family_of
from bvllm_transformers.glimpse import pictures
from bvllm_transformers.splits import Grid

CLIP_TOWER = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
    "projection_dim": 16,
}  # fmt: skip
SIGLIP_TOWER = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 4,
}  # fmt: skip
PIXTRAL = {
    "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "head_dim": 8, "image_size": 32, "patch_size": 4,
}  # fmt: skip
TEXT = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
IMAGE = 280


def of_images(name: str) -> tuple[Any, Inputs]:
    """A tiny model that takes images alone, and a prompt with two of them."""
    model_class = getattr(transformers, f"{name}ForConditionalGeneration")
    if "mm_encoder_outputs" not in inspect.signature(model_class.forward).parameters:
        pytest.skip(f"{name} of transformers {transformers.__version__} takes no features")
    draw = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    config: dict[str, Any] = {"text_config": dict(TEXT), "image_token_id": IMAGE}
    if name == "Llava":
        config |= {"model_type": "llava", "vision_config": CLIP_TOWER}
        config |= {"image_seq_length": 4, "vision_feature_layer": -1}
        inputs, sizes = {"pixel_values": noise(2, 3, 16, 16)}, [4, 4]
    elif name == "LlavaNext":
        config |= {"model_type": "llava_next", "vision_config": CLIP_TOWER}
        config |= {"image_grid_pinpoints": [[16, 32], [32, 16]], "vision_feature_layer": -1}
        inputs = {
            "pixel_values": noise(2, 3, 3, 16, 16),
            "image_sizes": torch.tensor([[16, 32], [32, 16]]),
        }
        sizes = [14, 16]  # 4 of the whole, and rows of the grid with a new line each
    elif name == "Idefics3":
        config |= {"model_type": "idefics3", "vision_config": SIGLIP_TOWER, "scale_factor": 2}
        inputs, sizes = {"pixel_values": noise(1, 2, 3, 16, 16)}, [4, 4]
    else:
        config |= {"model_type": "mistral3", "vision_config": PIXTRAL, "spatial_merge_size": 2}
        config["text_config"]["model_type"] = "mistral"
        config |= {"vision_feature_layer": -1}
        inputs = {
            "pixel_values": noise(2, 3, 16, 24),
            "image_sizes": torch.tensor([[16, 24], [16, 16]]),
        }
        sizes = [6, 4]
    model = build(model_class, config)
    ids = [5, 6, 7, *[IMAGE] * sizes[0], 8, 9, *[IMAGE] * sizes[1], 10, 11]
    inputs["input_ids"] = torch.tensor([ids])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return model, inputs


IMAGES_ALONE = ("Llava", "LlavaNext", "Idefics3", "Mistral3")


@pytest.mark.parametrize("name", IMAGES_ALONE)
def test_images_alone(name: str) -> None:
    model, inputs = of_images(name)
    logits, ids = forward(model, inputs), greedy(model, inputs)
    with wrapped(model, max_tokens=PLENTY):
        assert forward(model, inputs).equal(logits)
        with always_spliced():
            assert forward(model, inputs).equal(logits)
            assert greedy(model, inputs).equal(ids)
    for budget in range(1, 9):
        with wrapped(model, max_tokens=budget), torch.no_grad():
            made = budgeted(model, inputs)["input_ids"][0]
            forward(model, inputs)
        assert int((made == IMAGE).sum()) == min(budget, int((inputs["input_ids"] == IMAGE).sum()))
        assert made[made != IMAGE].tolist() == [5, 6, 7, 8, 9, 10, 11]
    assert forward(model, inputs).equal(logits)


def with_an_image(name: str) -> Inputs:
    """The prompt of a video with an image before it: the video's first group, shown as an image."""
    one = family(name)
    inputs = one.inputs()
    t, h, w = inputs["video_grid_thw"][0].tolist()
    hole = int(inputs["input_ids"][0, placeholders(inputs)[0]])
    image = hole if hole == IMAGE else 280
    size = count(inputs["input_ids"], one) // t
    new = torch.tensor([[7, 282, *[image] * size, 283, 9]])
    types = ((new == image) & (new >= 280)).long()
    out = {**inputs, "input_ids": torch.cat([new, inputs["input_ids"]], 1)}
    out["attention_mask"] = torch.ones_like(out["input_ids"])
    if "mm_token_type_ids" in inputs:
        out["mm_token_type_ids"] = torch.cat([types, inputs["mm_token_type_ids"]], 1)
    out["pixel_values"] = inputs["pixel_values_videos"][: h * w] * 0.5
    out["image_grid_thw"] = torch.tensor([[1, h, w]])
    return out


GRIDS = [
    name
    for name in sorted(INDEX)
    if type(SERVED[INDEX[name]["class"]].split) is Grid and name != "ernie4_5_vl_moe"
]


@pytest.mark.parametrize("name", GRIDS)
def test_images_beside_videos(name: str) -> None:
    one = family(name)
    model, inputs = one.shared_model(), with_an_image(name)
    if SERVED[one.class_name].key == "image":
        with pytest.raises(ValueError, match="do not match"):  # GLM counts all as the image's
            forward(model, inputs)
    else:
        logits = forward(model, inputs)
        with wrapped(model, max_tokens=PLENTY), always_spliced():
            assert forward(model, inputs).equal(logits)
    with wrapped(model, max_tokens=6), torch.no_grad():
        made = budgeted(model, inputs)
        forward(model, inputs)
        answer = greedy(model, inputs)
    visual = torch.isin(made["input_ids"], torch.tensor([280, 281]))
    assert int(visual.sum()) == 6
    assert {"image", "video"} >= made["mm_encoder_outputs"].keys()
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 4


def test_frames_of_zeros_fill_up_ragged_batches_of_smolvlm() -> None:
    one = family("smolvlm")
    model, first = one.shared_model(), one.inputs()
    second = longer(one, first, 3, seed=2)
    prompts = [first, second]
    zeros = torch.zeros_like(first["pixel_values"][:, :3])
    together = batch(one, [first, {**second, "pixel_values": first["pixel_values"]}])
    filled = torch.cat([zeros, second["pixel_values"]], 1)  # before the frames, too
    together["pixel_values"] = torch.cat([first["pixel_values"], filled])
    logits = forward(model, together)
    with wrapped(model, max_tokens=PLENTY), always_spliced():
        assert forward(model, together).equal(logits)
    with wrapped(model, max_tokens=7):
        alone = [forward(model, prompt)[0] for prompt in prompts]
        for row, single in zip(forward(model, together), alone, strict=True):
            torch.testing.assert_close(row[-len(single) :], single, rtol=0, atol=3e-5)


def compressed(keep: list[int]) -> Inputs:
    """VideoLLaMA3's prompt with so many tokens of each frame, as its processor compresses it."""
    one = family("video_llama_3")
    inputs = one.inputs()
    mask = torch.tensor([place < left for left in keep for place in range(4)])
    columns = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
    columns[placeholders(inputs)[~mask]] = False
    out = {
        key: value[:, columns] if value.shape == inputs["input_ids"].shape else value
        for key, value in inputs.items()
    }
    return {**out, "video_compression_mask": mask}


@pytest.mark.parametrize("keep", [[4, 2, 3, 1, 4, 1], [4, 0, 3, 1, 0, 2], [2] * 6, [4] * 6])
def test_a_compressed_video_keeps_what_its_mask_says(keep: list[int]) -> None:
    """Forward() would apply the mask to features once more, or fail on those that are left."""
    one = family("video_llama_3")
    model, inputs = one.shared_model(), compressed(keep)
    logits, ids = forward(model, inputs), greedy(model, inputs)
    with wrapped(model, max_tokens=PLENTY):
        assert forward(model, inputs).equal(logits)
        with always_spliced():
            assert forward(model, inputs).equal(logits)
            assert greedy(model, inputs).equal(ids)
    for budget in (1, 5, 9):
        with wrapped(model, max_tokens=budget), torch.no_grad():
            made = budgeted(model, inputs)
            forward(model, inputs)
        assert count(made["input_ids"], one) == min(budget, sum(keep))
        assert "video_compression_mask" not in made


@pytest.mark.parametrize("name", sorted(NOT_SERVED))
def test_who_is_not_served_is_told_why(name: str) -> None:
    model = type(name, (torch.nn.Module,), {})()
    with pytest.raises(HostError, match=f"model: got a {name}: "):
        bvllm.wrap(model, host="bvllm_transformers:HOST", max_tokens=8)


def test_an_unknown_class_is_told_what_is_served() -> None:
    with pytest.raises(HostError, match="model: got a Linear, wanted one of"):
        family_of(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("nemotron_h_omni", "video_pruning_rate", 0.5),
        ("instructblipvideo", "use_decoder_only_language_model", False),
    ],
)
def test_settings_that_are_not_served(name: str, setting: str, value: Any) -> None:
    model = family(name).model()
    setattr(model.config, setting, value)
    with pytest.raises(HostError, match=f"config.{setting}: got {value}, wanted"):
        check_served(model)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("qwen3_vl", "video_grid_thw"),
        ("gemma4", "num_frames_per_video"),
        ("molmo2", "video_token_pooling"),
        ("minicpmv4_6", "target_sizes_videos"),
        ("video_llama_3", "video_merge_sizes"),
    ],
)
def test_arguments_that_pixels_need(name: str, argument: str) -> None:
    one = family(name)
    inputs = {key: value for key, value in one.inputs().items() if key != argument}
    with wrapped(one.shared_model(), max_tokens=5) as model:
        with pytest.raises(ValueError, match=f"{argument}: got None beside pixels, wanted"):
            forward(model, inputs)


@pytest.mark.parametrize("name", ["molmo2", "nemotron_h_omni"])
def test_images_beside_videos_where_the_model_takes_either(name: str) -> None:
    one = family(name)
    inputs = {**one.inputs(), "pixel_values": torch.zeros(1, 16, 48)}
    with wrapped(one.shared_model(), max_tokens=5) as model:
        with pytest.raises(ValueError, match="pixel_values: got images beside"):
            forward(model, inputs)


def test_images_beside_frames_of_one_placeholder_need_their_types() -> None:
    """GLM 5 counts its ids, so that nothing else would ask for them."""
    one = family("glm5_next")
    inputs = with_an_image("glm5_next")
    del inputs["mm_token_type_ids"]
    with wrapped(one.shared_model(), max_tokens=5) as model:
        with pytest.raises(ValueError, match="mm_token_type_ids: got None, wanted"):
            forward(model, inputs)


@pytest.mark.parametrize("name", sorted(name for name in INDEX if available(name)))
def test_pictures_follow_the_pixels(name: str) -> None:
    """Of each group one picture, equal for equal pixels: what frames are chosen by."""
    one = family(name)
    split, inputs = SERVED[one.class_name].split, one.inputs()
    found = pictures(one.shared_model().config, split, inputs, 0, one.groups)
    if found is None:
        assert name in {"gemma4", "gemma4_bidir", "gemma4_unified", "molmo2"}
        return
    assert found.shape[:2] == (one.groups, 3)
    assert bool((found >= 0).all()) and bool((found <= 1).all())
    assert len(found.flatten(1).unique(dim=0)) == one.groups
