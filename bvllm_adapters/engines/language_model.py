"""The language model inside a host as a checkpoint of its own, which any engine serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bvllm_adapters.hosts.base import base_model
from bvllm_adapters.hosts.find import host_of, processor_of
from bvllm_adapters.hosts.host import HostError
from bvllm_adapters.hosts.language_model import language_class
from bvllm_adapters.weights.lora_layers import lora_layers
from bvllm_adapters.weights.whole import saved_whole

# A prompt comes with its format in it, so nothing is put around it.
CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@torch.no_grad()
def save_language_model(model: nn.Module, folder: str | Path, *, processor: Any = None) -> None:
    """Write what reads prompts of `prompt_embeds`: a plain Qwen2, Llama, Mistral or Mixtral with
    its tokenizer, all of it or nothing. An adapter's LoRA is merged in; the model stays as it is.

    Its chat template puts nothing around what a message holds. transformers' AutoTokenizer takes
    the tokenizer of any Qwen2 for one of Qwen2's own kind: another's answers need its ids.

    Args:
        model: wrapped or not. processor: None: beside the checkpoint that it was loaded from.

    Raises:
        HostError: a model whose language model cannot be served alone.
        ValueError: packed or offloaded weights, peft's layers in it, or `folder` is a file.
    """
    base: Any = base_model(model)
    host: Any = host_of(base)
    if not hasattr(host, "language_model"):
        raise HostError(
            f"model: got a {type(base).__name__}, which engines serve itself, wanted one of a host "
            "with a language_model(), as the native host, VideoLLaMA2's and LLaMA-VID's have"
        )
    processor = processor_of(base) if processor is None else processor
    plain = plain_language_model(host.language_model(base))
    with saved_whole(folder) as new:
        plain.save_pretrained(new)
        host.save_tokenizer(processor, new)
        (new / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def plain_language_model(model: Any) -> Any:
    """The ...ForCausalLM of transformers in a model that derives from it, sharing its weights, but
    those that a LoRA is merged into."""
    cls = language_class(model)
    config = plain_config(cls, model)
    with torch.device("meta"):
        plain: Any = cls(config)
    state = merged_state(model)
    names = list(plain.state_dict())
    lacking = [name for name in names if name not in state]
    if lacking:
        raise ValueError(
            f"model: got no weights {lacking[:3]}, wanted those of a {cls.__name__}; merge peft's "
            "layers first (merge_and_unload())"
        )
    plain.load_state_dict({name: state[name] for name in names}, assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain.eval()


def plain_config(cls: Any, model: Any) -> Any:
    """The settings that such a language model knows, with as many words as there are."""
    known = cls.config_class().to_dict().keys() - {"model_type", "architectures"}
    given = {name: value for name, value in model.config.to_dict().items() if name in known}
    given["vocab_size"] = model.get_input_embeddings().weight.shape[0]
    return cls.config_class.from_dict(given)


def merged_state(model: Any) -> dict[str, Tensor]:
    """All weights by name, an adapter's LoRA added to those it stands beside.

    Raises:
        ValueError: packed or offloaded ones.
    """
    state: dict[str, Tensor] = dict(model.state_dict())
    for name, weight in state.items():
        if weight.is_meta or getattr(model, "is_quantized", False):
            raise ValueError(
                f"model: got {weight.dtype} weights on {weight.device} in {name}, packed or "
                "offloaded, wanted floating point ones on a device"
            )
    for name, layer in lora_layers(model).items():
        weight = state[f"{name}.weight"]
        state[f"{name}.weight"] = (weight.float() + layer.matrix().to(weight.device)).to(weight)
    return state
