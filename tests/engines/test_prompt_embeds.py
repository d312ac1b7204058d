"""A budget kept before a server sees it: its answer is the host's own.

vLLM does not install beside these versions. In its stead the checkpoint that is written is loaded
by transformers alone, and read what a stub of vLLM's server decodes of a request.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from vllm_stub import embeds_of, parts_of, serving

import bvllm_adapters as bvllm
from bvllm_adapters.engines.language_model import save_language_model
from bvllm_adapters.engines.prompt_embeds import PromptEmbeds, prompt_embeds
from bvllm_adapters.hosts.find import published_host
from bvllm_adapters.weights.lora_layers import add_lora, lora_layers

HOSTS = {
    "LlavaLlamaAttForCausalLM": "Llama",
    "Videollama2MistralForCausalLM": "Mistral",
    "Videollama2MixtralForCausalLM": "Mixtral",
    "BvllmQwen2ForConditionalGeneration": "Qwen2",
}
QUESTION = "What is taped to the wall?"
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module", params=HOSTS)
def served(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A wrapped model that has seen a video, and its language model as files."""
    folder = tmp_path_factory.mktemp("model")
    published_host(request.param).tiny(folder, request.param)
    model = bvllm.wrap(bvllm.load(folder), max_tokens=9)
    frames = np.random.default_rng(0).integers(0, 256, (12, 48, 48, 3), dtype=np.uint8)
    video = bvllm.open_video(model, frames)
    alone = tmp_path_factory.mktemp("alone") / "language"
    save_language_model(model, alone)
    return video, alone, HOSTS[request.param]


def ours(video: Any, question: str = QUESTION, **settings: Any) -> list[int]:
    answer = video.ask(question, return_dict_in_generate=True, **GREEDY, **settings)
    ids: list[int] = answer.generated.sequences[0].tolist()
    return ids


def theirs(folder: Path, embeds: torch.Tensor) -> list[int]:
    """What transformers, which knows nothing of videos, says to it."""
    alone = AutoModelForCausalLM.from_pretrained(folder)
    new = alone.generate(inputs_embeds=embeds[None], **GREEDY)
    ids: list[int] = new[0].tolist()
    return ids


def test_a_plain_checkpoint_answers_as_the_host_does(served: Any) -> None:
    video, folder, family = served
    made = prompt_embeds(video, QUESTION)
    assert len(made.tokens) == 9 and made.embeds.device.type == "cpu"
    alone = AutoModelForCausalLM.from_pretrained(folder)
    assert type(alone).__name__ == f"{family}ForCausalLM"
    assert made.embeds.shape[1] == alone.config.hidden_size
    assert theirs(folder, made.embeds) == ours(video)


def test_budget_history_and_system_count(served: Any) -> None:
    video, folder, _ = served
    how: dict[str, Any] = {"history": [("Who?", "A rabbit.")], "system": "Be brief."}
    how["max_tokens"] = 4
    made = prompt_embeds(video, QUESTION, **how)
    assert len(made.tokens) == 4
    assert theirs(folder, made.embeds) == ours(video, **how)


def test_a_server_reads_the_same(served: Any) -> None:
    """Offline, by completions, and as a part of a chat whose template puts nothing around it."""
    video, folder, _ = served
    made = prompt_embeds(video, QUESTION)
    width = made.embeds.shape[1]
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def answer(path: str, request: dict[str, Any]) -> Any:
        if path == "/v1/completions":
            return embeds_of(request["prompt_embeds"], width).tolist()
        (part,) = parts_of(request, "prompt_embeds")
        # The server has the chat template rendered around a token that stands for the part.
        stands = "<prompt_embeds>"
        tokenizer.add_special_tokens({"additional_special_tokens": [stands]})
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": stands}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert ids == [tokenizer.convert_tokens_to_ids(stands)]
        return embeds_of(part["data"], width).tolist()

    with serving(answer) as post:
        for path, request in (
            ("/v1/completions", {"model": "any", **made.completion()}),
            ("/v1/chat/completions", {"model": "any", "messages": made.messages()}),
        ):
            assert torch.equal(torch.tensor(post(path, request)), made.embeds)
    assert torch.equal(made.prompt()["prompt_embeds"], made.embeds)


def test_the_tokenizer_that_goes_along_writes_the_same_words(served: Any) -> None:
    """AutoTokenizer takes any qwen2's for Qwen2's own kind, which the tiny one's words are not."""
    video, folder, family = served
    there = (PreTrainedTokenizerFast if family == "Qwen2" else AutoTokenizer).from_pretrained(
        folder
    )
    ids = there("a yellow banana.")["input_ids"]
    assert there.decode(ids, skip_special_tokens=True).strip() == "a yellow banana."
    assert video.processor.tokenizer.decode(ids).removeprefix("<s>").strip() == "a yellow banana."


def test_a_lora_is_merged_into_the_copy_alone(served: Any, tmp_path: Path) -> None:
    video, _, _ = served
    model = copy.deepcopy(video.model)
    prefix = "language_model.model" if hasattr(model, "language_model") else "model"
    add_lora(model, [f"{prefix}.layers.0.self_attn.q_proj"], rank=2, alpha=4.0)
    (layer,) = lora_layers(model).values()
    torch.nn.init.normal_(layer.lora_B, generator=torch.Generator().manual_seed(0))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    save_language_model(model, tmp_path / "alone", processor=video.processor)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    frames = np.random.default_rng(1).integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)
    again = bvllm.open_video(model, frames, processor=video.processor)
    made = prompt_embeds(again, QUESTION)
    assert theirs(tmp_path / "alone", made.embeds) == ours(again)


def test_wrong_arguments_are_named(served: Any, tmp_path: Path) -> None:
    video, _, _ = served
    with pytest.raises(TypeError, match="video: got str, wanted one that open_video has opened"):
        prompt_embeds("clip.mp4", QUESTION)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_tokens: got 0"):
        prompt_embeds(video, QUESTION, max_tokens=0)
    with pytest.raises(ValueError, match="model: got no weights"):  # in peft's layers
        lacking = copy.deepcopy(video.model)
        (getattr(lacking, "language_model", lacking)).model.layers[0].self_attn.q_proj.weight = None
        save_language_model(lacking, tmp_path / "alone", processor=video.processor)
    assert not (tmp_path / "alone").exists()
    with pytest.raises(ValueError, match=r"model: got torch.float32 weights on meta in"):
        far = copy.deepcopy(video.model).to("meta")
        save_language_model(far, tmp_path / "alone", processor=video.processor)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match="folder: got"):
        save_language_model(video.model, file)
    assert isinstance(prompt_embeds(video, ""), PromptEmbeds)
