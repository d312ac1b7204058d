"""Wrapping: our port, a live object of upstream's names, and a PeftModel around it."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)

import bvllm_adapters as bvllm
from bvllm_adapters.checkpoint import CheckpointError
from bvllm_adapters.question import asking
from bvllm_llama_vid import HOST, frame_indices
from bvllm_llama_vid.encoding import features_of
from bvllm_llama_vid.shim import language_model, read_question
from bvllm_llama_vid.tiny import write_tiny_checkpoint

NAME = "bvllm_llama_vid:HOST"
FIRST, SECOND = "What is taped to the wall?", "Who walks over the meadow?"
BUDGET = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return bvllm.load(folder, host=NAME)


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return HOST.processor(folder)


def put_on(model: Any, seed: int = 0, **settings: Any) -> Any:
    """Wrap with louder random weights than a new tokenizer's, so that questions matter."""
    base = bvllm.hosts.base_model(model)
    small = {"num_frames": 4, "tokens_per_frame": 4, "max_tokens": BUDGET}
    config = dataclasses.replace(HOST.config(base), **(small | settings))
    bvllm.wrap(model, config=config, host=NAME)
    torch.manual_seed(seed)
    for parameter in base.balanced_tokenizer.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.15)
    return model


@pytest.fixture
def wrapped(loaded: Any) -> Any:
    return put_on(copy.deepcopy(loaded))


def frames(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 56, 56, generator=torch.Generator().manual_seed(seed))


VIDEO = frames(9)


def embeddings(model: Any, ids: Tensor, images: Any, prompts: Any = None, **more: Any) -> Tensor:
    with torch.no_grad():
        out = model.prepare_inputs_labels_for_multimodal(
            ids, more.get("attention_mask"), None, more.get("labels"), images, prompts
        )
    assert out[0] is None
    found: Tensor = out[3]
    return found


def ids_of(processor: Any, *turns: str) -> Tensor:
    found: Tensor = processor.tokenizer(processor.prompt(*turns))[None]
    return found


def visual(model: Any, ids: Tensor, *args: Any, **more: Any) -> Tensor:
    """The visual tokens of one row, in a place: what is not its words."""
    spliced = embeddings(model, ids, *args, **more)[0]
    place = int((ids[0] == -200).nonzero()[0, 0])
    return spliced[place : place + len(spliced) - int((ids[0] >= 0).sum())]


def test_frames_become_a_bounded_number_of_tokens(wrapped: Any, processor: Any) -> None:
    ids = ids_of(processor, FIRST)
    for count in (1, 2, 9, 40):
        tokens = visual(wrapped, ids, [frames(count)], [[FIRST]])
        assert tokens.shape == (min(BUDGET, 4 * count), 64) or len(tokens) <= BUDGET
        assert len(tokens) >= 4
    assert len(visual(wrapped, ids, frames(1), [[FIRST]])) == 4  # (B, 3, S, S)


def test_tokens_are_the_tokenizers_own(wrapped: Any, processor: Any) -> None:
    tower = wrapped.get_vision_tower().tokens(VIDEO)
    features = bvllm.FrameFeatures(tower[:, 0], tower[:, 1:])
    wanted = wrapped.balanced_tokenizer([features], [FIRST])[0].tokens
    got = visual(wrapped, ids_of(processor, FIRST), [VIDEO], [[FIRST]])
    torch.testing.assert_close(got, wanted)


def test_forward_and_generate_go_on_as_before(wrapped: Any, processor: Any) -> None:
    ids = ids_of(processor, FIRST)
    out = wrapped(input_ids=ids, images=[VIDEO], prompts=[[FIRST]])
    assert out.logits.shape[1] == ids.shape[1] - 1 + BUDGET
    new = wrapped.generate(ids, images=[VIDEO], prompts=[[FIRST]], max_new_tokens=4)
    assert torch.equal(new[:, : ids.shape[1]], ids) and new.shape[1] <= ids.shape[1] + 4


def test_whose_question_counts(wrapped: Any, processor: Any) -> None:
    """asking() before prompts=, that before update_prompt(), that before the prompt's ids."""
    ids = ids_of(processor, FIRST)
    by_first, by_second = (visual(wrapped, ids, [VIDEO], [[q]]) for q in (FIRST, SECOND))
    assert not torch.equal(by_first, by_second)
    assert torch.equal(visual(wrapped, ids, [VIDEO]), by_first)  # read from the ids
    wrapped.update_prompt([[SECOND]])
    assert torch.equal(visual(wrapped, ids, [VIDEO]), by_second)
    assert torch.equal(visual(wrapped, ids, [VIDEO], [[FIRST]]), by_first)  # a stale one
    with asking(FIRST):
        assert torch.equal(visual(wrapped, ids, [VIDEO], [[SECOND]]), by_first)
        assert torch.equal(visual(wrapped, ids, [VIDEO]), by_first)
    assert torch.equal(visual(wrapped, ids, [VIDEO]), by_second)


def test_each_turn_has_its_prompt_and_all_share_the_budget(wrapped: Any, processor: Any) -> None:
    ids = ids_of(processor, FIRST, "A banana.", f"<image>\n{SECOND}")
    spliced = embeddings(wrapped, ids, [VIDEO], [[FIRST, SECOND]])[0]
    assert len(spliced) == ids.shape[1] - 2 + BUDGET
    tower = wrapped.get_vision_tower().tokens(VIDEO)
    features = bvllm.FrameFeatures(tower[:, 0], tower[:, 1:])
    both = wrapped.balanced_tokenizer([features] * 2, [FIRST, SECOND], prompts=[0, 0])
    place = int((ids[0] == -200).nonzero()[0, 0])
    torch.testing.assert_close(spliced[place : place + len(both[0])], both[0].tokens)


def test_answers_never_reach_the_question(wrapped: Any, processor: Any) -> None:
    """Contract 9: with labels or without, in the first turn and in later ones."""
    tokens = []
    for answer, later in (
        ("A banana.", "Yes."),
        ("A yellow banana with grey tape. USER: or not? ASSISTANT: no", "It is at noon."),
    ):
        ids = ids_of(processor, FIRST, answer, SECOND, later, FIRST)
        labels = torch.full_like(ids, -100)
        begin = len(ids_of(processor, FIRST)[0])
        labels[:, begin:] = ids[:, begin:]
        tokens += [
            visual(wrapped, ids, [VIDEO]),
            visual(wrapped, ids, [VIDEO], labels=labels),
        ]
    alone = visual(wrapped, ids_of(processor, FIRST), [VIDEO])
    assert all(torch.equal(each, alone) for each in tokens)


def test_a_prompt_of_no_known_format_is_read_whole(folder: Path, processor: Any) -> None:
    config = bvllm.load(folder, host=NAME).config
    for text, question in (
        (SECOND, SECOND),
        (
            f"[INST] <<SYS>> x <</SYS>> {SECOND} [/INST] no [INST] a [/INST]",
            f"<<SYS>> x <</SYS>> {SECOND}",
        ),
    ):
        assert read_question(config, processor.tokenizer(text), None, None) == question


def test_nothing_about_a_call_stays_on_the_model(wrapped: Any, processor: Any) -> None:
    def names() -> set[str]:
        return {f"{path}.{key}" for path, m in wrapped.named_modules() for key in m.__dict__}

    before = names()
    wrapped(input_ids=ids_of(processor, FIRST), images=[VIDEO], prompts=[[FIRST]])
    assert names() == before


def test_a_padded_mixed_batch_equals_its_rows_alone(wrapped: Any, processor: Any) -> None:
    rows = [ids_of(processor, q)[0] for q in (FIRST, SECOND)] + [torch.tensor([1, 40, 41])]
    images, prompts = [VIDEO, frames(3, seed=1), VIDEO[:1]], [[FIRST], [SECOND], [FIRST]]
    for side in ("left", "right"):
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side)
        ones = [torch.ones_like(row) for row in rows]
        mask = nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_side=side)
        call = {"input_ids": ids, "attention_mask": mask, "images": images, "prompts": prompts}
        with torch.no_grad():
            logits = wrapped(**call).logits
            _, spliced, *_ = wrapped.prepare_inputs_labels_for_multimodal(
                ids, mask, None, None, images, prompts
            )
            for i, row in enumerate(rows):
                alone = wrapped(input_ids=row[None], images=[images[i]], prompts=[prompts[i]])
                torch.testing.assert_close(
                    logits[i][spliced[i].bool()], alone.logits[0], atol=1e-5, rtol=1e-4
                )


def test_a_long_videos_placeholders_are_contracted(wrapped: Any, processor: Any) -> None:
    features = wrapped.get_vision_tower().tokens(VIDEO)[:, 1:]
    short = ids_of(processor, FIRST)[0]
    place = int((short == -200).nonzero()[0, 0])
    expanded = torch.cat([short[:place], short.new_full((18,), -200), short[place + 1 :]])[None]
    contracted = visual(wrapped, short[None], [features], [[FIRST]])
    assert torch.equal(visual(wrapped, expanded, [features], [[FIRST]]), contracted)
    assert torch.equal(visual(wrapped, expanded, [features]), contracted)
    # The mean of a frame's patches stands for it.
    pooled = bvllm.FrameFeatures.pooled(features, "mean")
    wanted = wrapped.balanced_tokenizer([pooled], [FIRST])[0].tokens
    torch.testing.assert_close(contracted, wanted)


def test_labels_follow_the_tokens(wrapped: Any, processor: Any) -> None:
    ids = ids_of(processor, FIRST)
    labels = torch.full_like(ids, -100)
    labels[:, -2:] = ids[:, -2:]
    out = wrapped(input_ids=ids, labels=labels, images=[VIDEO], prompts=[[FIRST]])
    assert out.loss.isfinite()
    out.loss.backward()
    assert wrapped.balanced_tokenizer.projection[0].weight.grad is not None


def test_long_videos_are_encoded_again_where_frames_are_chosen(
    loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bvllm_adapters.encoding.KEEP_FRAMES", 40)
    model = bvllm.wrap(copy.deepcopy(loaded), max_tokens=6)
    features = features_of(model, frames(41))
    assert callable(features.patches)
    again = features.patches(torch.tensor([3, 20]))
    kept = features_of(model, frames(40)).patches
    assert isinstance(kept, Tensor)
    torch.testing.assert_close(again, kept[[3, 20]], atol=1e-5, rtol=0)


@torch.no_grad()
def test_unwrapped_is_bit_identical(loaded: Any, processor: Any) -> None:
    """Contract 10, and text-only prompts of the wrapped model."""
    model = copy.deepcopy(loaded)
    call = {"input_ids": ids_of(processor, FIRST), "images": [VIDEO], "prompts": [[FIRST]]}
    text = {"input_ids": torch.tensor([[1, 50, 60, 70]])}
    keys, before, words = list(model.state_dict()), model(**call).logits, model(**text).logits
    put_on(model)
    assert not torch.equal(model(**call).logits[:, :1], before[:, :0])
    assert torch.equal(model(**text).logits, words)
    assert torch.equal(model(**text, images=[VIDEO], prompts=[[FIRST]]).logits, words)
    assert torch.equal(model(**text, images=None).logits, words)
    bvllm.unwrap(model)
    assert type(model) is type(loaded) and list(model.state_dict()) == keys
    assert torch.equal(model(**call).logits, before)


def test_an_adapter_on_a_fresh_copy(loaded: Any, processor: Any, tmp_path: Path) -> None:
    """Contract 12."""
    model, fresh = put_on(copy.deepcopy(loaded)), copy.deepcopy(loaded)
    ids = ids_of(processor, FIRST)
    before = visual(model, ids, [VIDEO])
    bvllm.save_adapter(model, tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".safetensors"}
    bvllm.wrap(fresh, adapter=tmp_path, host=NAME)
    assert torch.equal(visual(fresh, ids, [VIDEO]), before)
    assert torch.equal(visual(copy.deepcopy(fresh), ids, [VIDEO]), before)


def test_a_wrapped_model_is_saved_in_its_own_layout(
    loaded: Any, processor: Any, folder: Path, tmp_path: Path
) -> None:
    model = put_on(copy.deepcopy(loaded))
    ids = ids_of(processor, FIRST)
    before = visual(model, ids, [VIDEO], [[FIRST]])
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(loaded.state_dict())
    again = bvllm.load(tmp_path, host=NAME)
    assert torch.equal(visual(again, ids, [VIDEO], [[FIRST]]), before)


# peft asks transformers for a property by its former name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_peft_model_around_it(loaded: Any, processor: Any) -> None:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules=r"model\.layers\..*\.q_proj", init_lora_weights=False)
    model = get_peft_model(copy.deepcopy(loaded), lora).eval()
    ids = ids_of(processor, FIRST)
    call = {"input_ids": ids, "images": [VIDEO], "prompts": [[FIRST]]}
    with torch.no_grad():
        before = model(**call).logits
        put_on(model)
        assert model(**call).logits.shape[1] == ids.shape[1] - 1 + BUDGET
        assert model.generate(**call, max_new_tokens=2).shape[1] <= ids.shape[1] + 2
        answer = bvllm.ask(model, np.zeros((3, 60, 70, 3), np.uint8), FIRST, processor=processor)
        assert answer.trace.frames_decoded == 3
        bvllm.unwrap(model)
        assert torch.equal(model(**call).logits, before)


def test_asking(loaded: Any, folder: Path) -> None:
    """Tokenizer and image processor are found beside the checkpoint."""
    model = put_on(copy.deepcopy(loaded))
    video = np.random.default_rng(0).integers(0, 256, (7, 48, 64, 3), dtype=np.uint8)
    answer = bvllm.ask(model, video, FIRST, max_new_tokens=6)
    assert answer.trace.num_tokens <= BUDGET and answer.trace.frames_decoded == 7
    again = bvllm.ask(model, video, FIRST, max_new_tokens=6)
    assert again.text == answer.text
    image = bvllm.ask(model, video[0], FIRST, max_tokens=2, max_length=200)
    assert image.trace.num_tokens == 2


def test_images_are_made_square_and_videos_are_not(folder: Path, loaded: Any) -> None:
    processor = HOST.processor(folder)
    assert processor.pad_images
    wide = np.full((1, 20, 60, 3), 255, np.uint8)
    white = processor.pixels(wide)[0]
    assert torch.equal(white, white[:, :1, :1].expand_as(white))
    padded = processor.pixels(wide, pad=True)[0]
    assert padded[:, 0].abs().max() < 0.02  # the mean colour
    assert torch.equal(padded[:, 28], white[:, 28])


def test_the_shell_around_the_language_model_shares_it(loaded: Any) -> None:
    shell = language_model(loaded)
    assert shell.model is loaded.get_model() and shell.lm_head is loaded.lm_head
    assert loaded.config.num_hidden_layers == 2
    ids = torch.tensor([[1, 50, 60]])
    with torch.no_grad():
        assert torch.equal(shell(input_ids=ids).logits, loaded(input_ids=ids).logits)


def test_a_question_that_nobody_says(loaded: Any, processor: Any) -> None:
    model = put_on(copy.deepcopy(loaded))
    model.config._name_or_path = "nowhere"
    with pytest.raises(ValueError, match=r"prompts: got None, and no tokenizer beside"):
        visual(model, ids_of(processor, FIRST), [VIDEO])


def test_fewer_prompts_than_placeholders(wrapped: Any, processor: Any) -> None:
    ids = ids_of(processor, FIRST, "A banana.", f"<image>\n{SECOND}")
    with pytest.raises(ValueError, match=r"prompts: got 1 for row 0 with 2 placeholders"):
        embeddings(wrapped, ids, [VIDEO], [[FIRST]])


def test_frame_indices_never_stand_still() -> None:
    assert frame_indices(29.97, 100).tolist() == [0, 30, 60, 90]
    assert frame_indices(0.4, 3).tolist() == [0, 1, 2]


# A live object of upstream's: the names it has, and no more than they need.
class UpstreamTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3}
        config = CLIPVisionConfig(**sizes, num_attention_heads=4, image_size=56, patch_size=14)
        self.vision_tower = CLIPVisionModel(config)
        self.select_layer = -2

    def forward(self, images: Tensor) -> Tensor:
        states = self.vision_tower(images, output_hidden_states=True).hidden_states
        return states[self.select_layer][:, 1:]


class UpstreamEvaTower(nn.Module):
    def __init__(self, eva: nn.Module) -> None:
        super().__init__()
        self.vision_tower = eva

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.vision_tower(images)
        return found


class UpstreamModel(LlamaModel):
    def __init__(self, config: LlamaConfig, tower: nn.Module) -> None:
        super().__init__(config)
        self.vision_tower = tower

    def get_vision_tower(self) -> nn.Module:
        return self.vision_tower


class LlavaLlamaAttForCausalLM(LlamaForCausalLM):
    def __init__(self, config: LlamaConfig, tower: nn.Module) -> None:
        super().__init__(config)
        self.model = UpstreamModel(config, tower)

    def get_model(self) -> Any:
        return self.model

    def get_vision_tower(self) -> Any:
        return self.get_model().get_vision_tower()

    def update_prompt(self, prompts: Any = None) -> None:
        self.prompts = prompts

    def prepare_inputs_labels_for_multimodal(
        self, ids: Any, mask: Any, cache: Any, labels: Any, images: Any, prompts: Any = None
    ) -> Any:
        return ids, mask, cache, None, labels  # its own two tokens a frame do not matter here

    def forward(
        self, input_ids: Any = None, images: Any = None, prompts: Any = None, **kwargs: Any
    ) -> Any:
        _ = images[0]  # upstream's fails here without images
        ids, mask, _, inputs_embeds, _ = self.prepare_inputs_labels_for_multimodal(
            input_ids, kwargs.get("attention_mask"), None, None, images, prompts=prompts
        )
        hidden = self.model(input_ids=ids, attention_mask=mask, inputs_embeds=inputs_embeds)[0]
        return self.lm_head(hidden)


def upstream(folder: Path, tower: nn.Module) -> Any:
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    for name, value in {
        "mm_hidden_size": 48,
        "bert_type": "qformer_pretrain",
        "mm_qformer_config": {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    }.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = LlavaLlamaAttForCausalLM(config, tower).eval()
    model.config._name_or_path = str(folder)
    return model


@pytest.mark.parametrize("kind", ["clip", "eva"])
def test_a_live_upstream_model(folder: Path, processor: Any, loaded: Any, kind: str) -> None:
    eva = loaded.get_vision_tower().vision_tower
    tower = UpstreamTower() if kind == "clip" else UpstreamEvaTower(copy.deepcopy(eva))
    model = upstream(folder, tower)
    ids = ids_of(processor, FIRST)
    with torch.no_grad():
        before = model(input_ids=ids.clamp_min(0), images=[VIDEO])
        put_on(model)
        out = model(input_ids=ids, images=[VIDEO], prompts=[[FIRST]])
        assert ids.shape[1] - 1 < out.shape[1] <= ids.shape[1] - 1 + BUDGET
        assert torch.equal(model(input_ids=ids, images=[VIDEO]), out)  # read from the ids
        model.update_prompt([[SECOND]])
        assert not torch.equal(model(input_ids=ids, images=[VIDEO]), out)
        model.update_prompt(None)
        pixels = np.random.default_rng(0).integers(0, 256, (5, 56, 56, 3), dtype=np.uint8)
        answer = bvllm.ask(model, pixels, FIRST, processor=processor, max_new_tokens=3)
        assert answer.trace.num_tokens <= BUDGET
        bvllm.unwrap(model)
        assert torch.equal(model(input_ids=ids.clamp_min(0), images=[VIDEO]), before)


def test_a_clips_frame_is_its_cls_token(folder: Path, processor: Any) -> None:
    model = put_on(upstream(folder, UpstreamTower()))
    tower: Any = model.get_vision_tower()
    with torch.no_grad():
        states = tower.vision_tower(VIDEO, output_hidden_states=True).hidden_states[-2]
        features = bvllm.FrameFeatures(states[:, 0], states[:, 1:])
        wanted = model.balanced_tokenizer([features], [FIRST])[0].tokens
    got = visual(model, ids_of(processor, FIRST), [VIDEO], [[FIRST]])
    torch.testing.assert_close(got, wanted)


def test_a_tokenizer_that_cannot_be_found(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"holds 0 tokenizer.model, wanted one"):
        HOST.processor(tmp_path)
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        shutil.copy(folder / "tokenizer.model", tmp_path / name)
    with pytest.raises(CheckpointError, match=r"holds 2 tokenizer.model, wanted one"):
        HOST.processor(tmp_path)


def test_special_tokens_are_no_text(folder: Path, processor: Any) -> None:
    tokenizer = processor.tokenizer
    ids = tokenizer(f"{FIRST}</s>USER: <image>\nWho?")
    assert ids[0] == tokenizer.bos_token_id and int((ids == tokenizer.eos_token_id).sum()) == 1
    assert tokenizer.decode(ids).split() == f"{FIRST} USER: Who?".split()
