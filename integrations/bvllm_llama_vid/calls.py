"""forward and generate in upstream's calling convention, whichever transformers is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from bvllm_adapters.hosts.generation import settled
from bvllm_adapters.hosts.language_model import (
    StepsOfTransformers,
    cache_name,
    language_class,
    one_cache,
)
from bvllm_adapters.hosts.splice import left_padded, places_of_ids
from bvllm_adapters.hosts.trainers import beside_all_weights, for_trainers
from bvllm_llama_vid.inputs import is_placeholder

Prompts = Sequence[Sequence[str]]


class Calls(StepsOfTransformers):
    """What our port and any wrapped model are called by; it knows its prompts' visual tokens by
    `prepare_inputs_labels_for_multimodal`.

    The methods of transformers' language model are called by its class, past those that upstream's
    own object has between: upstream's forward fails without images, and its generate() either
    fails or shows the images to the tower again for each word, as they know the cache of 2023's
    transformers alone.
    """

    def forward(
        self: Any,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        images: Any = None,
        prompts: Prompts | None = None,
        *,
        cache: Any = None,
        **kwargs: Any,
    ) -> Any:
        """A LlamaForCausalLM's, with `images` and `prompts` of
        `prepare_inputs_labels_for_multimodal`; logits are (B, S, V), and the output's `labels`
        those of the spliced prompts. A Trainer that holds logits beside its own labels
        gets them over the ids, see `for_trainers`. The cache may come under either name."""
        cache = one_cache(cache, past_key_values)
        places: list[Tensor] = []
        if input_ids is not None and inputs_embeds is None:
            with places_of_ids() as places:
                input_ids, attention_mask, cache, inputs_embeds, labels = (
                    self.prepare_inputs_labels_for_multimodal(
                        input_ids, attention_mask, cache, labels, images, prompts=prompts
                    )
                )
            if inputs_embeds is not None and attention_mask is not None:
                # From each row's first token on, so that padding before it changes nothing.
                first = attention_mask.long().argmax(dim=1, keepdim=True)
                count = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)
                position_ids = (count - first).clamp_min(0)
        input_ids, inputs_embeds = beside_all_weights(self, input_ids, inputs_embeds)
        llama = language_class(self)
        kwargs[cache_name(llama.forward)] = cache
        outputs: Any = llama.forward(
            self,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
        read_by_trainer = for_trainers(self, outputs, places, labels, kwargs)
        if not read_by_trainer and not isinstance(outputs, tuple):
            outputs.labels = labels
        return outputs

    @torch.no_grad()
    def generate(
        self: Any,
        inputs: Tensor | None = None,
        images: Any = None,
        prompts: Prompts | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' generate(); returns (B, L + new) ids, the placeholders among them.

        Visual tokens are made once, before the first word; prompts of different lengths are
        aligned at their ends.
        """
        llama = language_class(self)
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if input_ids is None or images is None or not bool(is_placeholder(input_ids).any()):
            if input_ids is not None:
                kwargs["input_ids"] = input_ids
            return llama.generate(self, **kwargs)
        attention_mask = kwargs.pop("attention_mask", None)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        _, mask, _, embeddings, _ = self.prepare_inputs_labels_for_multimodal(
            input_ids, attention_mask, None, None, images, prompts=prompts
        )
        assert embeddings is not None and mask is not None  # there are placeholders and a mask
        mask, embeddings = left_padded(mask, embeddings)
        # Lengths are of ids, as upstream counts.
        kwargs = settled(
            self.generation_config, kwargs, prompt_length=input_ids.shape[1], answers=False
        )
        if (criteria := kwargs.get("stopping_criteria")) is not None:
            # Upstream's look for a keyword behind the prompt, so they must see the prompt.
            kwargs["stopping_criteria"] = StoppingCriteriaList(
                [_BehindPrompt(each, input_ids) for each in criteria]
            )
        kwargs |= {"inputs_embeds": embeddings, "attention_mask": mask}
        out: Any = llama.generate(self, **kwargs)
        new = out if isinstance(out, Tensor) else out.sequences
        prompt = input_ids.to(new.device).repeat_interleave(len(new) // len(input_ids), dim=0)
        ids = torch.cat([prompt, new], dim=1)
        if isinstance(out, Tensor):
            return ids
        out.sequences = ids
        return out


class _BehindPrompt:
    """A stopping criterion that is shown the prompt's ids before the new ones."""

    def __init__(self, criterion: Any, prompt: Tensor) -> None:
        self.criterion = criterion
        self.prompt = prompt

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        times = len(input_ids) // len(self.prompt)
        prompt = self.prompt.to(input_ids.device).repeat_interleave(times, dim=0)
        return self.criterion(torch.cat([prompt, input_ids], dim=1), scores, **kwargs)
