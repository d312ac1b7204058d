"""Wrapped: our port, and a model object with upstream's class, attribute and method names."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, Qwen2ForCausalLM

import bvllm_adapters as bvllm
from bvllm_adapters.context import asking
from bvllm_adapters.hosts.language_model import CACHE_NAMES, cache_of
from bvllm_adapters.testing import check_budget
from bvllm_videollama2 import HOST, frame_features
from bvllm_videollama2.tiny import tiny_checkpoint, tiny_model

SERVED_BY = "bvllm_videollama2:HOST"
QUESTION = "what is taped to the wall?"
R = 32  # visual tokens of a frame, the default
SETTINGS: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}


class UpstreamTower(nn.Module):
    """The tower as upstream's object has it."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.vision_tower = CLIPVisionModel(CLIPVisionConfig(**config.mm_vision_config))
        self.select_layer, self.select_feature = config.mm_vision_select_layer, "patch"

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        states = self.vision_tower(images, output_hidden_states=True).hidden_states
        return states[self.select_layer][:, 1:]


class Videollama2Qwen2ForCausalLM(Qwen2ForCausalLM):
    """Stands for upstream's live object: names and conventions, the least of what they do. Like
    upstream's, its forward knows the cache by its former name and drops what it does not know."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.vision_tower = UpstreamTower(config)
        self.model.mm_projector = nn.Linear(config.mm_hidden_size, config.hidden_size)

    def get_model(self) -> Any:
        return self.model

    def get_vision_tower(self) -> Any:
        return self.model.vision_tower

    def prepare_inputs_labels_for_multimodal(
        self, input_ids: Any, attention_mask: Any, past_key_values: Any, labels: Any, images: Any
    ) -> Any:
        if images is None or input_ids.shape[1] == 1:
            return input_ids, attention_mask, past_key_values, None, labels
        (video, _), (ids,) = images[0], input_ids
        place = int((ids < 0).nonzero())
        features = self.model.mm_projector(self.model.vision_tower(video).mean(dim=0))
        words = self.model.embed_tokens(ids.clamp_min(0))
        embeds = torch.cat([words[:place], features, words[place + 1 :]])[None]
        return None, torch.ones(embeds.shape[:2]), past_key_values, embeds, labels

    def forward(  # type: ignore[override]
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        use_cache: Any = None,
        output_attentions: Any = None,
        output_hidden_states: Any = None,
        images: Any = None,
        return_dict: Any = None,
        **kwargs: Any,
    ) -> Any:
        if inputs_embeds is None:
            input_ids, attention_mask, past_key_values, inputs_embeds, labels = (
                self.prepare_inputs_labels_for_multimodal(
                    input_ids, attention_mask, past_key_values, labels, images
                )
            )
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Any, past_key_values: Any = None, inputs_embeds: Any = None, **kwargs: Any
    ) -> Any:
        images = kwargs.pop("images", None)
        inputs = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, inputs_embeds=inputs_embeds, **kwargs
        )
        return inputs if images is None else inputs | {"images": images}

    @torch.no_grad()
    def generate(self, inputs: Any = None, images: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        if "inputs_embeds" in kwargs:
            raise NotImplementedError
        _, mask, _, embeds, _ = self.prepare_inputs_labels_for_multimodal(
            input_ids=inputs,
            attention_mask=kwargs.pop("attention_mask", None),
            past_key_values=None,
            labels=None,
            images=images,
        )
        embeds = self.model.embed_tokens(inputs) if embeds is None else embeds
        return super().generate(attention_mask=mask, inputs_embeds=embeds, **kwargs)


def inner(model: Any) -> Any:
    """The modules of the tower, whether transformers has a level more or less."""
    encoder = model.get_vision_tower().vision_tower
    return getattr(encoder, "vision_model", encoder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return HOST.processor(folder)


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, Any]:
    port = HOST.load(folder, dtype=torch.float32)
    torch.manual_seed(1)
    upstream = Videollama2Qwen2ForCausalLM(port.config).eval()
    inner(upstream).load_state_dict(inner(port).state_dict())
    return {"port": port, "upstream": upstream}


@pytest.fixture(params=["port", "upstream"])
def plain(models: dict[str, Any], request: pytest.FixtureRequest) -> Any:
    return copy.deepcopy(models[request.param])


def wrap(model: Any, **options: Any) -> Any:
    torch.manual_seed(2)
    return bvllm.wrap(model, host=SERVED_BY, **options)


@pytest.fixture
def wrapped(plain: Any) -> Any:
    return wrap(plain, max_tokens=48)


def video(frames: int, seed: int = 0) -> tuple[Tensor, str]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(frames, 3, 56, 56, generator=draw), "video"


def prompt(processor: Any, text: str = QUESTION, kind: str = "video") -> Tensor:
    ids: Tensor = processor.ids(processor.prompt(text, kind), kind)
    return ids


def embeds(model: Any, ids: Tensor, images: Any, labels: Any = None, mask: Any = None) -> Tensor:
    found: Tensor = model.prepare_inputs_labels_for_multimodal(ids, mask, None, labels, images)[3]
    return found


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 3, 40])
def test_frames_of_any_number_within_the_budget(wrapped: Any, processor: Any, frames: int) -> None:
    ids = prompt(processor)
    tokens = embeds(wrapped, ids, [video(frames)]).shape[1] - (ids.shape[1] - 1)
    assert tokens == min(48, frames * R)
    logits = wrapped(input_ids=ids, images=[video(frames)]).logits
    assert logits.shape[1] == ids.shape[1] - 1 + tokens
    if frames > 1:
        changed = [(video(frames)[0].flip(0), "video")]
        assert not torch.equal(wrapped(input_ids=ids, images=changed).logits, logits)


@torch.no_grad()
def test_all_visual_inputs_of_a_prompt_share_its_budget(wrapped: Any, processor: Any) -> None:
    ids = torch.cat([torch.tensor([[-200]]), prompt(processor)], dim=1)
    image = (video(1)[0], "image")
    assert embeds(wrapped, ids, [image, video(9)]).shape[1] == ids.shape[1] - 2 + 48


@torch.no_grad()
def test_an_image_is_one_frame_however_it_comes(wrapped: Any, processor: Any) -> None:
    ids = prompt(processor, kind="image")
    image = video(1)[0]
    ways = [image[0], image, image.expand(8, -1, -1, -1), image.repeat(8, 1, 1, 1)]
    found = [embeds(wrapped, ids, [(way, "image")]) for way in ways]
    assert found[0].shape[1] == ids.shape[1] - 1 + R
    assert all(torch.equal(one, found[0]) for one in found)


@torch.no_grad()
def test_the_question_is_read_from_the_prompt_unless_it_is_said(
    wrapped: Any, processor: Any
) -> None:
    ids, other = prompt(processor), prompt(processor, "where is the dog?")
    read = embeds(wrapped, ids, [video(9)])
    with asking(QUESTION):
        assert torch.equal(embeds(wrapped, ids, [video(9)]), read)
        from_other_prompt = embeds(wrapped, other, [video(9)])
    length, start = 48, int((ids[0] == -201).nonzero())
    visual = slice(start, start + length)
    assert torch.equal(from_other_prompt[:, visual], read[:, visual])
    assert not torch.equal(embeds(wrapped, other, [video(9)])[:, visual], read[:, visual])


@torch.no_grad()
@pytest.mark.parametrize("turns", [1, 2])
def test_answers_never_change_visual_tokens(wrapped: Any, processor: Any, turns: int) -> None:
    question = prompt(processor)[0]
    say = processor.tokenizer

    def visual(answer: str, later: str) -> Tensor:
        ids, labels = [question], [torch.full_like(question, -100)]
        for turn in range(turns):
            if turn:
                more = torch.tensor(say(f"<|im_start|>user\n{later}<|im_end|>\n")["input_ids"])
                ids, labels = [*ids, more], [*labels, torch.full_like(more, -100)]
            said = torch.tensor(say(f"{answer}<|im_end|>")["input_ids"])
            ids, labels = [*ids, said], [*labels, said]
        found = embeds(wrapped, torch.cat(ids)[None], [video(9)], torch.cat(labels)[None])
        return found[:, : len(question) + 47]

    assert torch.equal(visual("a banana", "why?"), visual("no dog", "who did it?"))


def word_by_word(model: Any, ids: Tensor, count: int) -> Tensor:
    """(1, count) words that follow a text, each by reading all of it anew."""
    for _ in range(count):
        word = model(input_ids=ids).logits[:, -1:].argmax(dim=2)
        ids = torch.cat([ids, word], dim=1)
    return ids[:, -count:]


# Upstream's forward calls the cache by its former name.
@pytest.mark.filterwarnings("ignore:.*`past_key_values`:FutureWarning")
@torch.no_grad()
def test_unwrapping_gives_the_model_back(plain: Any, processor: Any) -> None:
    ids, text = prompt(processor), prompt(processor, kind="text")
    keys = list(plain.state_dict())

    def outputs() -> list[Tensor]:
        return [
            plain(input_ids=ids, images=[video(8)]).logits,
            plain.generate(ids, images=[video(8)], **SETTINGS),
            plain(input_ids=text).logits,
            plain.generate(text, **SETTINGS),
        ]

    before = outputs()
    wrap(plain, max_tokens=48)
    during = outputs()
    assert not torch.equal(during[0][:, -1], before[0][:, -1])
    assert torch.equal(during[2], before[2])
    # Not what upstream's own object says: from transformers 5.24 on that is wrong.
    assert torch.equal(during[3], word_by_word(plain, text, during[3].shape[1]))
    bvllm.unwrap(plain)
    assert all(torch.equal(one, other) for one, other in zip(outputs(), before, strict=True))
    assert list(plain.state_dict()) == keys


@torch.no_grad()
def test_an_adapter_goes_onto_a_fresh_copy(plain: Any, processor: Any, tmp_path: Path) -> None:
    fresh = copy.deepcopy(plain)
    ids = prompt(processor)
    expected = embeds(wrap(plain, max_tokens=48), ids, [video(9)])
    bvllm.save_adapter(plain, tmp_path)
    bvllm.wrap(fresh, adapter=tmp_path, host=SERVED_BY)
    assert torch.equal(embeds(fresh, ids, [video(9)]), expected)


@torch.no_grad()
def test_a_wrapped_model_is_saved_with_its_adapter(
    models: dict[str, Any], processor: Any, tmp_path: Path
) -> None:
    model, ids = wrap(copy.deepcopy(models["port"]), max_tokens=48), prompt(processor)
    model.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    loaded = bvllm.load(tmp_path, host=SERVED_BY)
    expected = embeds(model, ids, [video(9)])
    assert torch.equal(embeds(loaded, ids, [video(9)]), expected)
    assert set(bvllm.unwrap(loaded).state_dict()) == set(models["port"].state_dict())


@torch.no_grad()
def test_a_batch_equals_its_prompts_run_alone(wrapped: Any, processor: Any) -> None:
    """Padded on either side, mixed with text, with and without upstream's dummy image for it."""
    rows = [
        (prompt(processor)[0], video(9)),
        (prompt(processor, "why?")[0], video(2, seed=1)),
        (prompt(processor, "how are you today?", "text")[0], None),
    ]
    length = max(len(ids) for ids, _ in rows)
    alone = [
        wrapped(input_ids=ids[None], images=shown and [shown]).logits[0] for ids, shown in rows
    ]
    said = [wrapped.generate(i[None], images=s and [s], **SETTINGS)[0] for i, s in rows]
    images = [shown for _, shown in rows if shown]
    dummy = (torch.zeros(3, 56, 56), "image")
    for side in ("left", "right"):
        ids = nn.utils.rnn.pad_sequence(
            [ids for ids, _ in rows], batch_first=True, padding_side=side
        )
        mask = nn.utils.rnn.pad_sequence(
            [torch.ones_like(ids) for ids, _ in rows], batch_first=True, padding_side=side
        )
        assert ids.shape[1] == length
        for given in (images, [*images, dummy]):
            spliced = wrapped.prepare_inputs_labels_for_multimodal(ids, mask, None, None, given)
            logits = wrapped(input_ids=ids, attention_mask=mask, images=given).logits
            for row, expected in enumerate(alone):
                torch.testing.assert_close(
                    logits[row, spliced[1][row].bool()], expected, rtol=0, atol=1e-4
                )
        generated = wrapped.generate(ids, images=images, attention_mask=mask, **SETTINGS)
        assert all(torch.equal(one, other) for one, other in zip(generated, said, strict=True))


@torch.no_grad()
def test_steps_of_generation_are_left_alone(wrapped: Any, processor: Any) -> None:
    step = torch.tensor([[7]])
    for images in (None, [video(9)]):
        found = wrapped.prepare_inputs_labels_for_multimodal(step, None, "cache", None, images)
        assert found[0] is step and found[2] == "cache" and found[3] is None
    ids = prompt(processor)
    cached = wrapped.generate(ids, images=[video(9)], **SETTINGS)
    spliced = embeds(wrapped, ids, [video(9)])
    for token in cached[0]:
        assert wrapped(inputs_embeds=spliced).logits[0, -1].argmax() == token
        spliced = torch.cat([spliced, wrapped.get_input_embeddings()(token[None, None])], dim=1)


@torch.no_grad()
@pytest.mark.parametrize("name", CACHE_NAMES)
def test_a_script_decodes_by_itself_with_the_cache_under_either_name(
    wrapped: Any, processor: Any, name: str
) -> None:
    ids = prompt(processor)
    said = wrapped.generate(ids, images=[video(9)], **SETTINGS)[0]
    out = wrapped(input_ids=ids, images=[video(9)], use_cache=True)
    for word in said[:-1]:
        assert out.logits[0, -1].argmax() == word
        out = wrapped(input_ids=word[None, None], use_cache=True, **{name: cache_of(out)})
    assert out.logits[0, -1].argmax() == said[-1]
    with pytest.raises(ValueError, match="cache: got it beside past_key_values"):
        wrapped(input_ids=ids, cache=cache_of(out), past_key_values=copy.deepcopy(cache_of(out)))


@torch.no_grad()
def test_a_model_that_was_asked_for_its_hidden_states_answers_as_before(
    wrapped: Any, processor: Any
) -> None:
    """transformers sets its hooks anew then, on the tower inside too."""
    call = {"input_ids": prompt(processor), "images": [video(9)]}
    before = wrapped(**call).logits
    wrapped(**call, output_hidden_states=True)
    assert torch.equal(wrapped(**call).logits, before)


@torch.no_grad()
def test_a_model_with_accelerates_hooks(plain: Any, processor: Any) -> None:
    """Which keep the forward of the class that the model had."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

    ids = prompt(processor)
    expected = wrap(plain, max_tokens=48).generate(ids, images=[video(9)], **SETTINGS)
    bvllm.unwrap(plain)
    add_hook_to_module(plain, AlignDevicesHook(execution_device="cpu"))
    wrap(plain, max_tokens=48)
    assert torch.equal(plain.generate(ids, images=[video(9)], **SETTINGS), expected)
    bvllm.unwrap(plain)
    remove_hook_from_module(plain)
    assert plain.forward.__func__ is type(plain).forward


# peft 0.21 asks for an attribute that transformers 5.23 has given another name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@torch.no_grad()
def test_a_peft_model_is_wrapped_through_its_base(plain: Any, processor: Any) -> None:
    from peft import LoraConfig, get_peft_model

    ids = prompt(processor)
    lora = LoraConfig(target_modules=["q_proj"], exclude_modules=".*vision_tower.*")
    lora.base_model_name_or_path = None
    model: Any = get_peft_model(plain, lora).eval()
    wrap(model, max_tokens=48)
    assert model(input_ids=ids, images=[video(9)]).logits.shape[1] == ids.shape[1] - 1 + 48
    assert model.generate(inputs=ids, images=[video(9)], **SETTINGS).shape == (1, 6)


def test_gradients_reach_the_tokenizer_and_every_weight_gets_one(
    wrapped: Any, processor: Any
) -> None:
    ids = prompt(processor)
    wrapped.train()
    wrapped(input_ids=ids, labels=ids.clamp_min(0), images=[video(9)]).loss.backward()
    grads = [p.grad for p in wrapped.balanced_tokenizer.parameters()]
    assert all(grad is not None for grad in grads)
    assert sum(float(grad.abs().sum()) > 0 for grad in grads) > len(grads) / 2
    assert all(p.grad is None for p in wrapped.get_vision_tower().parameters())
    wrapped.zero_grad()
    text, dummy = prompt(processor, kind="text"), (torch.zeros(3, 56, 56), "image")
    wrapped(input_ids=text, labels=text, images=[dummy]).loss.backward()
    grads = [p.grad for p in wrapped.balanced_tokenizer.parameters()]
    assert all(grad is not None and not grad.any() for grad in grads)


@torch.no_grad()
def test_long_videos_give_the_same_without_keeping_patches(
    wrapped: Any, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = prompt(processor)
    kept = embeds(wrapped, ids, [video(40)])
    monkeypatch.setattr("bvllm_adapters.seeing.encoding.KEEP_FRAMES", 10)
    torch.testing.assert_close(embeds(wrapped, ids, [video(40)]), kept, rtol=0, atol=1e-4)


def test_a_tower_without_cls_is_read_by_its_mean() -> None:
    model: Any = tiny_model(tower="siglip", projector="linear")
    assert HOST.config(model).frame_feature == "mean"
    wrap(model, max_tokens=48)
    pixels, _ = video(5)
    patches = model.get_vision_tower()(pixels)
    for how, wanted in (
        ("mean", patches.mean(1)),
        ("cls", patches.mean(1)),
        ("max", patches.amax(1)),
    ):
        config = replace(model.balanced_tokenizer.config, frame_feature=how)
        model.balanced_tokenizer.config = config
        features = frame_features.frame_features(model, pixels)
        torch.testing.assert_close(features.cls, wanted)
        torch.testing.assert_close(features.patches, patches)


@torch.no_grad()
def test_a_frame_is_its_cls_token_at_the_hosts_layer(wrapped: Any) -> None:
    pixels, _ = video(5)
    features = frame_features.frame_features(wrapped, pixels)
    torch.testing.assert_close(features.patches, wrapped.get_vision_tower()(pixels))
    vision = inner(wrapped)
    layers: list[Tensor] = []
    hook = vision.encoder.layers[-2].register_forward_hook(lambda m, a, out: layers.append(out))
    vision(pixels)
    hook.remove()
    torch.testing.assert_close(features.cls, layers[0][:, 0])
    assert HOST.config(wrapped).frame_feature == "cls"


def test_asking(wrapped: Any, processor: Any) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (11, 40, 64, 3), dtype=np.uint8)
    answer = bvllm.ask(wrapped, frames, QUESTION, processor=processor, max_new_tokens=5)
    assert answer.text and answer.trace.frames_decoded == 11
    check_budget([answer.trace.num_tokens], 48)
    ids, pixels = prompt(processor), processor.pixels(frames)
    said = wrapped.generate(
        ids, images=[(pixels, "video")], max_new_tokens=5, **processor.settings(wrapped)
    )
    assert answer.text == processor.tokenizer.decode(said[0], skip_special_tokens=True).strip()
    image = bvllm.ask(wrapped, frames[0], "", max_new_tokens=2)  # processor: beside the checkpoint
    assert image.trace.frames_decoded == 1 and image.trace.num_tokens == R


def test_a_folder_may_be_a_string(folder: Path, processor: Any) -> None:
    from bvllm_videollama2.preprocessing import Videollama2Processor
    from bvllm_videollama2.weights import load

    made = Videollama2Processor.from_folder(str(folder))
    assert made.prompt(QUESTION, "video") == processor.prompt(QUESTION, "video")
    assert load(str(folder), dtype=torch.float32).config.num_frames == processor.num_frames


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(folder: Path, processor: Any, dtype: torch.dtype) -> None:
    model = wrap(HOST.load(folder, dtype=dtype), max_tokens=48)
    assert model.balanced_tokenizer.dtype == dtype
    ids = prompt(processor)
    found = embeds(model, ids, [video(9)])
    assert found.dtype == dtype and found.isfinite().all()
    assert model.generate(ids, images=[video(9)], **SETTINGS).shape == (1, 6)


@torch.no_grad()
def test_a_vocabulary_that_the_checkpoint_brings(
    models: dict[str, Any], processor: Any, tmp_path: Path, folder: Path
) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "what", "is", "?"]
    model = copy.deepcopy(models["port"])
    place = shutil.copytree(folder, tmp_path / "checkpoint")
    model.config.name_or_path = model.name_or_path = str(place)
    model.config.mm_qformer_vocab = "vocab.txt"
    (place / "vocab.txt").write_text("\n".join(words))
    assert HOST.config(model).vocab_size == len(words) + 1  # and "[DEC]"
    wrap(model, max_tokens=48)
    seen: list[Any] = []
    read = model.balanced_tokenizer.frame_selector
    read.register_forward_pre_hook(lambda m, args: seen.append(args[1].tolist()))
    embeds(model, prompt(processor, "what is taped?"), [video(3)])
    assert seen == [[2, 4, 5, 1, 6, 3]]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            [],
            r"images: got 0, wanted one for each of the 1 placeholders \(and one for each of the 0",
        ),
        ([video(2), video(2)], r"images: got 2, wanted one for each of the 1 placeholders"),
        (None, r"images: got None, wanted one for each of the 1 placeholders"),
        (
            [(torch.zeros(2, 3, 56, 56, dtype=torch.uint8), "video")],
            r"images\[0\]: got torch.uint8",
        ),
        ([(torch.zeros(0, 3, 56, 56), "video")], r"images\[0\]: got .*at least one frame"),
        ([(torch.zeros(2, 3, 55, 56), "video")], r"pixels: got .*, wanted \(k, 3, 56, 56\)"),
        ([(torch.full((1, 3, 56, 56), torch.nan), "image")], r"images\[0\]: got NaN or inf"),
    ],
)
def test_images_that_do_not_fit(wrapped: Any, processor: Any, images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrapped(input_ids=prompt(processor), images=images)


def test_without_a_tokenizer_the_question_must_be_said(wrapped: Any, processor: Any) -> None:
    wrapped.name_or_path = "/nowhere"
    with pytest.raises(ValueError, match=r"name_or_path: got '/nowhere' .* wanted .*asking"):
        wrapped(input_ids=prompt(processor), images=[video(2)])
    with asking(QUESTION):
        wrapped(input_ids=prompt(processor), images=[video(2)])


def test_a_language_model_alone_is_not_wrapped() -> None:
    with pytest.raises(ValueError, match="model: got a language model alone"):
        HOST.config(tiny_model(mm_vision_tower=None))


def test_embeddings_or_ids_not_both(wrapped: Any, processor: Any) -> None:
    ids = prompt(processor, kind="text")
    with pytest.raises(ValueError, match="inputs_embeds: got it beside inputs"):
        wrapped.generate(ids, inputs_embeds=torch.zeros(1, 2, 64))


def test_importing_the_host_imports_no_model() -> None:
    code = (
        "import sys, bvllm_videollama2; "
        "print(sorted({'transformers', 'timm', 'peft', 'accelerate'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
