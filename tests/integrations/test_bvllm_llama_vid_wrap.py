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
    BertConfig,
    BertTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

import bvllm_adapters as bvllm
from bvllm_adapters.context import asking
from bvllm_adapters.hosts.base import base_model
from bvllm_adapters.hosts.language_model import bare_language_model
from bvllm_adapters.question import VOCABULARY, word_piece
from bvllm_adapters.weights.checkpoint import CheckpointError
from bvllm_llama_vid import HOST, frame_indices
from bvllm_llama_vid.encoding import features_of
from bvllm_llama_vid.shim import read_question
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
    base = base_model(model)
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
    monkeypatch.setattr("bvllm_adapters.seeing.encoding.KEEP_FRAMES", 40)
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


def test_a_folder_may_be_a_string(folder: Path, processor: Any) -> None:
    from bvllm_llama_vid.preprocessing import LlamaVidProcessor
    from bvllm_llama_vid.weights import load

    made = LlamaVidProcessor.load(str(folder))
    assert made.prompt(FIRST) == processor.prompt(FIRST)
    assert load(str(folder), dtype=torch.float32).config.mm_hidden_size == 48


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
    shell = bare_language_model(loaded)
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


# A live object of upstream's: the names it has, what it is made of, and no more than they need.
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
    def __init__(
        self, config: LlamaConfig, tower: nn.Module, encoder: nn.Module, words: Any
    ) -> None:
        super().__init__(config)
        self.vision_tower, self.vlm_att_encoder, self.vlm_att_tokenlizer = tower, encoder, words

    def get_vision_tower(self) -> nn.Module:
        return self.vision_tower


class LlavaLlamaAttForCausalLM(LlamaForCausalLM):
    """As upstream's, its forward fails without images, takes no argument that it does not know, and
    knows the cache by its former name; its generate() is transformers', which hands it the images
    at each step."""

    def __init__(self, config: LlamaConfig, *parts: Any) -> None:
        super().__init__(config)
        self.model = UpstreamModel(config, *parts)

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

    def forward(  # type: ignore[override]
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        use_cache: Any = None,
        output_attentions: Any = None,
        output_hidden_states: Any = None,
        images: Any = None,
        prompts: Any = None,
        return_dict: Any = None,
    ) -> Any:
        images[0] = images[0].to(self.device)  # upstream's fails here without images
        ids, mask, _, inputs_embeds, _ = self.prepare_inputs_labels_for_multimodal(
            input_ids, attention_mask, None, None, images, prompts=prompts
        )
        hidden = self.model(input_ids=ids, attention_mask=mask, inputs_embeds=inputs_embeds)[0]
        return CausalLMOutputWithPast(logits=self.lm_head(hidden))

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Any,
        past_key_values: Any = None,
        attention_mask: Any = None,
        inputs_embeds: Any = None,
        **kwargs: Any,
    ) -> Any:
        return {
            "input_ids": input_ids[:, -1:] if past_key_values else input_ids,
            "past_key_values": past_key_values,
            "use_cache": kwargs.get("use_cache"),
            "attention_mask": attention_mask,
            "images": kwargs.get("images"),
        }


@pytest.fixture(scope="module")
def live(folder: Path, loaded: Any) -> Any:
    """Makes a live object of the same checkpoint as `loaded`, whose config.json says nothing of the
    Q-Former's sizes: upstream's are bert-base's in any case."""
    bert = word_piece(VOCABULARY.read_text(encoding="utf-8").splitlines())
    words = BertTokenizer(tokenizer_object=bert)
    words.add_special_tokens({"bos_token": "[DEC]"})

    def make(kind: str) -> Any:
        eva = copy.deepcopy(loaded.get_vision_tower().vision_tower)
        config = LlamaConfig(
            vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, mm_hidden_size=48, bert_type="qformer_pretrain",
        )  # fmt: skip
        encoder = copy.deepcopy(loaded.get_model().vlm_att_encoder)
        encoder.config = BertConfig(num_attention_heads=4)
        torch.manual_seed(0)
        tower = UpstreamTower() if kind == "clip" else UpstreamEvaTower(eva)
        model = LlavaLlamaAttForCausalLM(config, tower, encoder, words).eval()
        model.config._name_or_path = str(folder)
        return model

    return make


@pytest.mark.parametrize("kind", ["clip", "eva"])
def test_a_live_upstream_model(live: Any, processor: Any, kind: str) -> None:
    model = live(kind)
    ids = ids_of(processor, FIRST)
    with torch.no_grad():
        before = model(input_ids=ids.clamp_min(0), images=[VIDEO]).logits
        put_on(model)
        out = model(input_ids=ids, images=[VIDEO], prompts=[[FIRST]]).logits
        assert ids.shape[1] - 1 < out.shape[1] <= ids.shape[1] - 1 + BUDGET
        assert torch.equal(model(input_ids=ids, images=[VIDEO]).logits, out)  # read from the ids
        model.update_prompt([[SECOND]])
        assert not torch.equal(model(input_ids=ids, images=[VIDEO]).logits, out)
        model.update_prompt(None)
        pixels = np.random.default_rng(0).integers(0, 256, (5, 56, 56, 3), dtype=np.uint8)
        answer = bvllm.ask(model, pixels, FIRST, processor=processor, max_new_tokens=3)
        assert answer.trace.num_tokens <= BUDGET
        bvllm.unwrap(model)
        assert torch.equal(model(input_ids=ids.clamp_min(0), images=[VIDEO]).logits, before)


@torch.no_grad()
def test_a_live_model_generates_as_scripts_of_upstreams_ask_it_to(
    live: Any, processor: Any
) -> None:
    """generate(ids, images=...) sees the video once, and gives each word its whole context."""
    model, ids = put_on(live("eva")), ids_of(processor, FIRST)
    seen: list[int] = []
    tower = model.get_vision_tower()
    hook = tower.register_forward_hook(lambda m, inputs, out: seen.append(len(out)))
    model.update_prompt([[FIRST]])
    new = model.generate(ids, images=[VIDEO], do_sample=False, max_new_tokens=5, eos_token_id=None)
    hook.remove()
    assert sum(seen) == len(VIDEO)
    assert torch.equal(new[:, : ids.shape[1]], ids) and new.shape[1] == ids.shape[1] + 5
    spliced = embeddings(model, ids, [VIDEO])
    for word in new[0, ids.shape[1] :]:
        assert model(inputs_embeds=spliced).logits[0, -1].argmax() == word
        spliced = torch.cat([spliced, model.get_input_embeddings()(word[None, None])], dim=1)


@torch.no_grad()
def test_a_live_model_that_was_asked_for_its_hidden_states_answers_as_before(
    live: Any, processor: Any
) -> None:
    """transformers sets its hooks anew then, on the CLIP inside too."""
    model = put_on(live("clip"))
    call = {"input_ids": ids_of(processor, FIRST), "images": [VIDEO], "prompts": [[FIRST]]}
    before = model(**call).logits
    model(**call, output_hidden_states=True)
    assert torch.equal(model(**call).logits, before)


@torch.no_grad()
def test_a_live_model_takes_text_alone(live: Any) -> None:
    model, ids = put_on(live("clip")), torch.tensor([[1, 50, 60, 70]])
    with_images = model(input_ids=ids, images=[VIDEO]).logits
    assert torch.equal(model(input_ids=ids).logits, with_images)
    said = model.generate(ids, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert said.shape == (1, 7) and said[0, 4] == with_images[0, -1].argmax()
    with pytest.raises(ValueError, match="images: got None, wanted one for each of the 1 place"):
        model(input_ids=torch.tensor([[1, -200, 60]]))


def test_a_live_model_gets_the_tokenizer_that_its_port_gets(live: Any, loaded: Any) -> None:
    assert HOST.config(live("eva")) == HOST.config(loaded)
    model = bvllm.wrap(live("eva"), max_tokens=BUDGET)
    port = bvllm.wrap(copy.deepcopy(loaded), max_tokens=BUDGET, host=NAME)
    shapes = [
        {name: tensor.shape for name, tensor in wrapped.balanced_tokenizer.state_dict().items()}
        for wrapped in (model, port)
    ]
    assert shapes[0] == shapes[1]
    read = [wrapped.balanced_tokenizer.question_tokenizer(FIRST) for wrapped in (model, port)]
    assert torch.equal(*read)


def test_a_clips_frame_is_its_cls_token(live: Any, processor: Any) -> None:
    model = put_on(live("clip"))
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
