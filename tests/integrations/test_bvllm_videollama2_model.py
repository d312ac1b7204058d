"""The port: families, projectors, prompts of all kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bvllm_videollama2.configuration import (
    Videollama2LlamaConfig,
    Videollama2MistralConfig,
    Videollama2MixtralConfig,
    Videollama2Qwen2Config,
)
from bvllm_videollama2.tiny import tiny_model

PIXELS = torch.randn(8, 3, 56, 56, generator=torch.Generator().manual_seed(0))
VIDEO, SHORT, IMAGE = (PIXELS, "video"), (PIXELS[:4], "video"), (PIXELS[:1], "image")
DUMMY = (torch.zeros(3, 56, 56), "image")
SETTINGS: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}

# projector -> tokens of T frames of 4 x 4 patches
TOKENS = {
    "stc_connector": lambda t: (t // 2 + 1) * 3 * 3,
    "stc_connector_v35": lambda t: t // 2 * 2 * 2,
    "stp_connector": lambda t: t // 2 * 2 * 2,
    "spatial_conv": lambda t: (t + 2) * 3 * 3,
    "spatial_pool": lambda t: t * 2 * 2,
    "linear": lambda t: 16,
    "mlp2x_gelu": lambda t: 16,
    "mlp3x_gelu": lambda t: 16,
}
BUILDS = [("Qwen2", "clip", projector) for projector in TOKENS] + [
    ("Mistral", "siglip", "stc_connector"),
    ("Mixtral", "clip", "linear"),
    ("Llama", "siglip", "spatial_pool"),
]


@pytest.fixture(scope="module", params=BUILDS, ids="-".join)
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_model(*request.param)


@torch.no_grad()
def test_number_of_tokens(model: Any) -> None:
    count = TOKENS[model.config.mm_projector_type]
    found = model.encode_images_or_videos([VIDEO, SHORT, IMAGE])
    assert [tuple(video.shape) for video in found] == [(count(t), 64) for t in (8, 4, 8)]
    again = (PIXELS[:1].repeat(8, 1, 1, 1), "video")
    torch.testing.assert_close(model.encode_images_or_videos([again])[0], found[2])


@torch.no_grad()
def test_a_batch_equals_its_prompts_run_alone(model: Any) -> None:
    """Videos of unequal length, an image, two in one prompt, and text with or without a dummy."""
    rows: list[tuple[list[int], list[Any] | None]] = [
        ([5, -201, 6, 7], [VIDEO]),
        ([9, 8, -201, 6, 7, 11, 12], [SHORT]),
        ([3, 4, 5, 6], None),
        ([5, -200, 6, -201], [IMAGE, SHORT]),
    ]
    alone, said = [], []
    for ids, images in rows:
        one = torch.tensor([ids])
        alone.append(model(input_ids=one, images=images).logits[0])
        said.append(model.generate(one, images=images, **SETTINGS)[0])
    images = [image for _, shown in rows for image in shown or []]
    with_dummy = [image for _, shown in rows for image in shown or [DUMMY]]
    for side in ("left", "right"):
        ids, mask = (
            nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side)
            for rows in zip(
                *((torch.tensor(ids), torch.ones(len(ids)).bool()) for ids, _ in rows), strict=True
            )
        )
        for given in (images, with_dummy):
            new_mask = model.prepare_inputs_labels_for_multimodal(ids, mask, None, None, given)[1]
            assert new_mask.dtype == torch.bool
            logits = model(input_ids=ids, attention_mask=mask, images=given).logits
            for row, expected in enumerate(alone):
                torch.testing.assert_close(
                    logits[row, new_mask[row]], expected, rtol=1e-4, atol=1e-4
                )
        generated = model.generate(ids, images=with_dummy, attention_mask=mask, **SETTINGS)
        assert all(torch.equal(one, other) for one, other in zip(generated, said, strict=True))


def test_gradients_reach_the_projector_alone(model: Any) -> None:
    model.zero_grad()
    ids = torch.tensor([[5, -201, 6, 7]])
    model(input_ids=ids, labels=ids.masked_fill(ids < 0, -100), images=[VIDEO]).loss.backward()
    projector = model.get_model().mm_projector
    assert all(p.grad is not None and p.grad.any() for p in projector.parameters())
    assert all(p.grad is None for p in model.get_vision_tower().parameters())


@pytest.fixture(scope="module")
def small() -> Any:
    return tiny_model("Mistral", "clip", "mlp2x_gelu")


def test_dummies_give_the_projector_a_gradient_of_zeros(small: Any) -> None:
    small.zero_grad()
    ids = torch.tensor([[5, 6, 7]])
    small(input_ids=ids, labels=ids, images=[DUMMY]).loss.backward()
    grads = [p.grad for p in small.get_model().mm_projector.parameters()]
    assert all(grad is not None and not grad.any() for grad in grads)


@torch.no_grad()
def test_the_output_carries_the_spliced_labels(small: Any) -> None:
    ids = torch.tensor([[5, -201, 6, 7]])
    labels = torch.tensor([[-100, -100, 6, 7]])
    output = small(input_ids=ids, labels=labels, images=[VIDEO])
    assert output.labels.tolist() == [[-100] * 17 + [6, 7]]
    logits = output.logits[:, :-1].reshape(-1, 512)
    loss = nn.functional.cross_entropy(logits, output.labels[:, 1:].reshape(-1))
    torch.testing.assert_close(output.loss, loss)
    as_tuple = small(input_ids=ids, labels=labels, images=[VIDEO], return_dict=False)
    assert torch.equal(as_tuple[0], output.loss)


@torch.no_grad()
def test_no_mask_stays_none_unless_padding_is_made(small: Any) -> None:
    def mask(*rows: list[int]) -> Tensor | None:
        ids = torch.tensor(rows)
        images = [IMAGE] * int((ids < 0).sum())
        found: Tensor | None = small.prepare_inputs_labels_for_multimodal(
            ids, None, None, None, images
        )[1]
        return found

    assert mask([5, -200, 6]) is None
    made = mask([5, -200, 6], [5, 7, 6])
    assert made is not None and made.sum(dim=1).tolist() == [18, 3]


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_never_learned(small: Any, side: Any) -> None:
    """Whatever labels stand there."""
    rows = [torch.tensor([5, -201, 6, 7, 8]), torch.tensor([5, -201, 9])]
    pad = {"batch_first": True, "padding_side": side}
    ids = nn.utils.rnn.pad_sequence(rows, **pad)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], **pad)
    labels = ids.masked_fill(ids < 0, -100)  # 0 at padding
    both = small(input_ids=ids, attention_mask=mask, labels=labels, images=[VIDEO, SHORT])
    kept = [row[row != -100].tolist() for row in both.labels]
    assert kept == [[5, 6, 7, 8], [5, 9] if side == "right" else [9]]  # no word comes before a 5
    alone = [
        small(input_ids=row[None], labels=row[None].clamp_min(-100), images=[shown]).loss
        for row, shown in zip(rows, (VIDEO, SHORT), strict=True)
    ]
    torch.testing.assert_close(both.loss, (3 * alone[0] + alone[1]) / 4, rtol=1e-4, atol=1e-4)


def test_a_mask_of_another_shape(small: Any) -> None:
    mask = torch.ones(1, 4)
    with pytest.raises(ValueError, match=r"attention_mask: got shape \(1, 4\), wanted \(1, 3\)"):
        small(input_ids=torch.tensor([[5, -201, 6]]), attention_mask=mask, images=[VIDEO])


def test_beams(small: Any) -> None:
    ids = torch.tensor([[5, -201, 6, 7], [5, -201, 9, 9]])
    beams = {"num_beams": 2, "num_return_sequences": 2}
    found = small.generate(ids, images=[VIDEO, SHORT], **SETTINGS, **beams)
    assert found.shape == (4, 4)


@pytest.mark.parametrize(
    ("rows", "images", "message"),
    [
        ([[5, -201, 6]], None, "images: got None, wanted one for each of the 1 placeholders"),
        (
            [[5, -201, 6], [5, 6, 7], [1, 2, 3]],
            [VIDEO, DUMMY],
            r"images: got 2, wanted one for each of the 1 placeholders "
            r"\(and one for each of the 2 prompts without, or none for them\)",
        ),
        ([[5, -201, 6]], [(PIXELS[0], "video")], r"images: got a video of \(3, 56, 56\), wanted"),
    ],
)
def test_images_that_do_not_fit(small: Any, rows: Any, images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(input_ids=torch.tensor(rows), images=images)


def test_what_a_projector_cannot_take() -> None:
    model: Any = tiny_model(projector="stc_connector_v35")
    with pytest.raises(ValueError, match="features: got 1 frames, wanted 2 or more"):
        model.encode_images_or_videos([(PIXELS[:1], "video")])
    model = tiny_model(projector="stc_connector", mm_vision_select_feature="cls_patch")
    with pytest.raises(ValueError, match="features: got 17 tokens a frame, wanted a square"):
        model.encode_images_or_videos([VIDEO])
    whole: Any = tiny_model(projector="linear", mm_vision_select_feature="cls_patch")
    assert whole.encode_images_or_videos([VIDEO]).shape == (1, 17, 64)


def test_a_language_model_alone() -> None:
    model: Any = tiny_model(mm_vision_tower=None)
    assert model.get_vision_tower() is None
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids, images=[DUMMY]).logits)


def test_model_types_are_upstreams() -> None:
    configs = (
        Videollama2MistralConfig,
        Videollama2Qwen2Config,
        Videollama2MixtralConfig,
        Videollama2LlamaConfig,
    )
    wanted = ["mistral", "qwen2", "mixtral", "llama"]
    assert [config.model_type for config in configs] == [f"videollama2_{name}" for name in wanted]
