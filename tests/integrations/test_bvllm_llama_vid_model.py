"""The port where upstream is wrong, or records nothing: padding, mixtures, long video, variants."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bvllm_adapters.hosts.language_model import CACHE_NAMES, cache_of
from bvllm_llama_vid import HOST, LlavaLlamaAttForCausalLM
from bvllm_llama_vid.context_attention import pool_patches
from bvllm_llama_vid.tiny import tiny_config

DATA = Path(__file__).parents[1] / "data" / "llama_vid" / "eva_mean"
FIRST, SECOND = "Who walks over the meadow?", "And what happens in the end, when the sun goes down?"
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(DATA / "fixture.safetensors")


@pytest.fixture(scope="module")
def model() -> Any:
    return HOST.load(DATA, dtype=torch.float32)


@pytest.fixture(scope="module")
def pixels(recorded: dict[str, Tensor]) -> Tensor:
    return HOST.processor(DATA).pixels(recorded["frames_uint8"].numpy())


def variant(**changes: Any) -> Any:
    """A tiny model of another configuration."""
    config = tiny_config(vocab_size=64)
    # The Q-Former's words are most of such a model.
    config.mm_qformer_config = {**config.mm_qformer_config, "vocab_size": 30523}
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    return LlavaLlamaAttForCausalLM(config).eval()


CLIP = {
    "mm_vision_tower": "openai/clip-tiny",
    "mm_vision_config": {
        "image_size": 56,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
    },
}


def pad(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side)
    ones = [torch.ones_like(row) for row in rows]
    return ids, torch.nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_side=side)


VIDEO = torch.tensor([1, 5, 9, -200, 7, 30, 31])
TURNS = torch.tensor([1, 5, -200, 9, 12, 2, 40, -200, 33, 34, 35])
TEXT = torch.tensor([1, 8, 20, 21])


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_padded_mixed_batch_equals_its_rows_alone(model: Any, pixels: Tensor, side: str) -> None:
    """Two turns over a video, a row of text, an image, a shorter video; no labels."""
    rows = [TURNS, TEXT, VIDEO, VIDEO]
    images = [pixels, pixels[:2], pixels[3], pixels[1:4]]  # the text's is not looked at
    prompts = [[FIRST, SECOND], [FIRST], [SECOND], [FIRST]]
    ids, mask = pad(rows, side)
    together = model(input_ids=ids, attention_mask=mask, images=images, prompts=prompts).logits
    _, spliced, *_ = model.prepare_inputs_labels_for_multimodal(
        ids, mask, None, None, images, prompts
    )
    for i, row in enumerate(rows):
        alone = model(input_ids=row[None], images=[images[i]], prompts=[prompts[i]]).logits[0]
        torch.testing.assert_close(together[i][spliced[i].bool()], alone, atol=1e-4, rtol=1e-5)


def test_a_ragged_batch_generates_as_its_rows_alone(model: Any, pixels: Tensor) -> None:
    rows, images, prompts = [TURNS, VIDEO], [pixels, pixels[:2]], [[FIRST, SECOND], [SECOND]]
    greedy = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for side in ("left", "right"):
        ids, mask = pad(rows, side)
        together = model.generate(
            ids, attention_mask=mask, images=images, prompts=prompts, **greedy
        )
        assert torch.equal(together[:, : ids.shape[1]], ids)
        for i, row in enumerate(rows):
            alone = model.generate(row[None], images=[images[i]], prompts=[prompts[i]], **greedy)
            assert torch.equal(together[i, ids.shape[1] :], alone[0, len(row) :])


@torch.no_grad()
def test_images_none_is_a_llama(model: Any) -> None:
    alone = model(input_ids=TEXT[None]).logits
    beside = model(input_ids=TEXT[None], images=[torch.rand(2, 3, 56, 56)], prompts=[[FIRST]])
    assert torch.equal(alone, beside.logits)


@torch.no_grad()
def test_images_for_rows_with_placeholders_only(model: Any, pixels: Tensor) -> None:
    ids, mask = pad([TEXT, VIDEO], "right")
    few = model(input_ids=ids, attention_mask=mask, images=[pixels], prompts=[[FIRST]])
    whole = model(
        input_ids=ids, attention_mask=mask, images=[pixels[:1], pixels], prompts=[[SECOND], [FIRST]]
    )
    assert torch.equal(few.logits, whole.logits)


@torch.no_grad()
def test_five_axes_and_four(model: Any, pixels: Tensor) -> None:
    listed = model(input_ids=VIDEO[None], images=[pixels], prompts=[[FIRST]]).logits
    stacked = model(input_ids=VIDEO[None], images=pixels[None], prompts=[[FIRST]]).logits
    assert torch.equal(listed, stacked)
    listed = model(input_ids=VIDEO[None], images=[pixels[2]], prompts=[[FIRST]]).logits
    stacked = model(input_ids=VIDEO[None], images=pixels[2:3], prompts=[[FIRST]]).logits
    assert torch.equal(listed, stacked)


@torch.no_grad()
def test_prompts_given_go_before_update_prompt(model: Any, pixels: Tensor) -> None:
    call = {"input_ids": VIDEO[None], "images": [pixels]}
    wanted = model(prompts=[[FIRST]], **call).logits
    model.update_prompt([[SECOND]])
    try:
        assert torch.equal(model(prompts=[[FIRST]], **call).logits, wanted)
        assert not torch.equal(model(**call).logits, wanted)
    finally:
        model.update_prompt(None)


@torch.no_grad()
def test_a_long_video_is_the_short_one_with_its_placeholders_written_out() -> None:
    """Of CLIP, whose features have no CLS, so that both ways see the same."""
    model = variant(**CLIP)
    frames = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    features = model.get_vision_tower()(frames)
    short = model(input_ids=VIDEO[None], images=[frames], prompts=[[FIRST]])
    expanded = torch.cat([VIDEO[:3], VIDEO[3:4].expand(6), VIDEO[4:]])
    long = model(input_ids=expanded[None], images=[features], prompts=[[FIRST]])
    torch.testing.assert_close(long.logits, short.logits, **CLOSE)
    contracted = model(input_ids=VIDEO[None], images=[features], prompts=[[FIRST]])
    torch.testing.assert_close(contracted.logits, short.logits, **CLOSE)

    # Words between frames: the tokens stay where their placeholders are.
    between = torch.cat([VIDEO[:3], VIDEO[3:4].expand(2), VIDEO[:2], VIDEO[3:4].expand(4)])[None]
    _, _, _, embeddings, _ = model.prepare_inputs_labels_for_multimodal(
        between, None, None, None, [features], [[FIRST]]
    )
    tokens = model.vlm_attention(features, [[FIRST]], [3], True)[0][0]
    torch.testing.assert_close(embeddings[0][between[0] == -200], tokens, **CLOSE)
    words = model.get_input_embeddings()(between[between >= 0])
    assert torch.equal(embeddings[0][between[0] != -200], words)


@torch.no_grad()
def test_frames_of_a_long_video_are_chunked_without_a_trace(model: Any) -> None:
    frames = torch.randn(70, 16, 48, generator=torch.Generator().manual_seed(0))
    whole = model.vlm_attention(frames, [[FIRST]], [70], True)[0][0]
    parts = [
        model.vlm_attention(part, [[FIRST]], [len(part)], True)[0][0] for part in frames.split(9)
    ]
    torch.testing.assert_close(whole, torch.cat(parts), atol=1e-4, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({"compress_type": None}, 17),
        ({"compress_type": "grid:2"}, 5),
        # Does not divide 4 patches a side: cells of one patch each, as upstream.
        ({"compress_type": "grid:3"}, 17),
        ({"bert_type": "qformer", **CLIP}, 2),
        ({"bert_type": "qformer_layer:1"}, 2),
        ({"bert_type": "raw", **CLIP}, 2),
        ({"bert_type": "raw"}, 2),
        ({"mm_projector_type": "linear"}, 2),
        ({"mm_projector_type": "mlp3x_gelu"}, 2),
        ({"mm_vision_select_feature": "cls_patch", **CLIP}, 2),
        ({"mm_vision_select_layer": -1, **CLIP}, 2),
    ],
)
def test_variants_run(changes: dict[str, Any], tokens: int) -> None:
    model = variant(**changes)
    frames = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    both = model.encode_images(frames, [[FIRST, SECOND]], [3])[0]
    assert both.shape == (2, 3 * tokens, 64)
    # The question reaches the first token of each frame, and no other.
    changed = (both[0] - both[1]).unflatten(0, (3, tokens)).abs().amax(dim=2) > 0
    assert changed[:, 0].all() and not changed[:, 1:].any()
    # A question's padding beside a longer one changes nothing.
    alone = model.encode_images(frames, [[FIRST]], [3])[0]
    torch.testing.assert_close(both[:1], alone, **CLOSE)


def test_a_tower_of_another_width_is_projected_for_the_qformer() -> None:
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = variant(mm_qformer_config={**sizes, "intermediate_size": 96, "encoder_width": 56})
    assert model.get_model().vlm_att_bert_proj.weight.shape == (56, 48)
    assert model.get_model().vlm_att_ln.weight.shape == (56,)


def test_an_odd_number_of_patches_is_no_sign_of_a_cls_token() -> None:
    small = tiny_config(64).mm_vision_config | {"image_size": 42}
    model = variant(mm_vision_config=small, compress_type=None)
    features = torch.randn(2, 1 + 9, 48, generator=torch.Generator().manual_seed(0))
    (seen,) = model.vlm_attention(features, [[FIRST]], [2])
    assert seen.shape == (1, 2 * (1 + 9), 64)
    # All behind the context token of a frame is of its patches, whether CLS stands before them.
    (alone,) = model.vlm_attention(features[:, 1:], [[FIRST]], [2])
    content = [tokens.unflatten(1, (2, 10))[:, :, 1:] for tokens in (seen, alone)]
    torch.testing.assert_close(*content, **CLOSE)


def test_frozen_variants() -> None:
    def trained(kind: str) -> set[str]:
        named = variant(bert_type=kind).get_model().named_parameters()
        return {name.split(".")[0] for name, p in named if p.requires_grad and "vlm_att" in name}

    projectors = {"vlm_att_projector", "vlm_att_key_projector", "vlm_att_val_projector"}
    assert trained("qformer_pretrain_freeze_all") == set()
    assert trained("qformer_pretrain_freeze") == projectors
    assert trained("qformer_pretrain") == projectors | {
        "vlm_att_encoder",
        "vlm_att_query",
        "vlm_att_ln",
    }


def test_gradients_reach_what_trains_and_the_tower_never(pixels: Tensor) -> None:
    model = variant().train()
    labels = torch.full_like(VIDEO, -100)
    labels[-2:] = VIDEO[-2:]
    loss = model(
        input_ids=VIDEO[None], labels=labels[None], images=[pixels], prompts=[[FIRST]]
    ).loss
    loss.backward()
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert without == set()
    assert not any(p.requires_grad for p in model.get_vision_tower().parameters())
    assert not model.get_vision_tower().training


@torch.no_grad()
def test_the_tower_gives_the_same_after_the_language_model_showed_its_states(
    pixels: Tensor,
) -> None:
    """transformers gathers hidden states by hooks, and may set those of a nested tower twice."""
    model = variant(**CLIP)
    before = model.get_vision_tower()(pixels)
    model(input_ids=TEXT[None], output_hidden_states=True, output_attentions=False)
    model.get_vision_tower()(pixels)
    assert torch.equal(model.get_vision_tower()(pixels), before)


@torch.no_grad()
def test_modules_that_are_replaced_in_their_published_place_are_used(pixels: Tensor) -> None:
    """As peft and quantizers do; the Q-Former inside only borrows them."""
    model = variant()
    before = model.encode_images(pixels[:1], [[FIRST]])[0]
    assert torch.equal(copy.deepcopy(model).encode_images(pixels[:1], [[FIRST]])[0], before)
    attention = "model.vlm_att_encoder.bert.encoder.layer.0.attention.self"
    model.get_submodule(attention).query = torch.nn.Linear(48, 48)
    assert not torch.equal(model.encode_images(pixels[:1], [[FIRST]])[0], before)


def test_stopping_criteria_see_the_prompt(model: Any, pixels: Tensor) -> None:
    seen: list[Tensor] = []

    def stop(ids: Tensor, _scores: Any, **_: Any) -> Tensor:
        seen.append(ids)
        return torch.full((len(ids),), ids.shape[1] >= len(VIDEO) + 2)

    out = model.generate(
        VIDEO[None],
        images=[pixels],
        prompts=[[FIRST]],
        max_length=50,
        do_sample=False,
        stopping_criteria=[stop],
    )
    assert out.shape[1] == len(VIDEO) + 2 and torch.equal(out, seen[-1])


def test_max_length_counts_ids_as_upstream_does(model: Any, pixels: Tensor) -> None:
    out = model.generate(
        VIDEO[None],
        images=[pixels],
        prompts=[[FIRST]],
        max_length=len(VIDEO) + 3,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
    )
    assert out.sequences.shape == (1, len(VIDEO) + 3)


@torch.no_grad()
@pytest.mark.parametrize("cache", CACHE_NAMES)
def test_a_script_can_decode_by_itself(model: Any, pixels: Tensor, cache: str) -> None:
    """One id at a time with `images` passed on, as upstream's generate() does."""
    given = {"images": [pixels], "prompts": [[FIRST]]}
    mask = torch.ones_like(VIDEO[None])
    first = model(input_ids=VIDEO[None], attention_mask=mask, use_cache=True, **given)
    word = first.logits[:, -1:].argmax(dim=2)
    second = model(
        input_ids=word,
        attention_mask=torch.ones(1, len(VIDEO) + 1),
        use_cache=True,
        **given,
        **{cache: cache_of(first)},
    )
    whole = model(input_ids=torch.cat([VIDEO[None], word], dim=1), **given)
    torch.testing.assert_close(second.logits[:, -1], whole.logits[:, -1], atol=1e-4, rtol=1e-4)


def test_pooled_cells_are_means() -> None:
    patches = torch.arange(16.0).view(1, 16, 1)
    assert pool_patches(patches, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pool_patches(patches, 1).flatten().tolist() == [7.5]
    assert pool_patches(patches, None) is patches
    with pytest.raises(ValueError, match=r"compress_type: got grid:5 for 16 patches"):
        pool_patches(patches, 5)
    with pytest.raises(ValueError, match=r"compress_type: got grid:2 for 15 patches"):
        pool_patches(patches[:, 1:], 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compress_type": "grid:1"}, r"compress_type: got 'grid:1', wanted None, 'mean' or"),
        ({"bert_type": "other"}, r"bert_type: got 'other', wanted"),
        ({"mm_projector_type": "conv"}, r"mm_projector_type: got 'conv', wanted"),
        ({"mm_vision_tower": "siglip"}, r"mm_vision_tower: got 'siglip', wanted"),
        ({"mm_vision_select_feature": "cls"}, r"mm_vision_select_feature: got 'cls', wanted"),
        ({"mm_hidden_size": 50}, r"mm_hidden_size: got 50, wanted 48"),
        ({**CLIP, "mm_vision_select_layer": 4}, r"mm_vision_select_layer: got 4, wanted one of 4"),
        (
            {**CLIP, "mm_vision_config": {"hidden_size": 50, "num_attention_heads": 4}},
            r"mm_vision_config: got 4 heads for a width of 50",
        ),
    ],
)
def test_configurations_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        variant(**changes).encode_images(torch.randn(1, 3, 56, 56), [[FIRST]])


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        (torch.zeros(3, 56, 56), [[FIRST]], r"images: got shape \(3, 56, 56\), wanted"),
        (
            [torch.zeros(2, 3, 56, 56)] * 3,
            [[FIRST]] * 3,
            r"images: got 3, wanted one for each of 1",
        ),
        ([torch.zeros(2, 4, 56, 56)], [[FIRST]], r"images\[0\]: got shape \(2, 4, 56, 56\)"),
        ([torch.zeros(0, 3, 56, 56)], [[FIRST]], r"images\[0\]: got shape \(0, 3, 56, 56\)"),
        ([torch.zeros(2, 16, 1408)], [[FIRST]], r"images\[0\]: got shape \(2, 16, 1408\), wanted"),
        ([torch.zeros(2, 3, 60, 60)], [[FIRST]], r"images: got shape \(2, 3, 60, 60\), wanted"),
        ([torch.zeros(2, 3, 56, 56)], None, r"prompts: got None, wanted the questions"),
        ([torch.zeros(2, 3, 56, 56)], [FIRST], r"prompts: got strings, wanted for each"),
        ([torch.zeros(2, 3, 56, 56)], [[FIRST]] * 2, r"prompts: got 2, wanted 1 as images"),
        ([torch.zeros(2, 3, 56, 56)], [[]], r"prompts\[0\]: got no question"),
    ],
)
def test_inputs_that_cannot_be(model: Any, images: Any, prompts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(input_ids=VIDEO[None], images=images, prompts=prompts)


def test_more_placeholders_than_prompts(model: Any, pixels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"prompts: got 1 for row 0 with 2 placeholders"):
        model(input_ids=TURNS[None], images=[pixels], prompts=[[FIRST]])
    with pytest.raises(ValueError, match=r"prompts: got 1, wanted 2, as many as visual inputs"):
        model.vlm_attention(torch.randn(2, 16, 48), [[FIRST]])
