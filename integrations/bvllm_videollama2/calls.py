"""forward and generate in upstream's calling convention, whichever transformers is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bvllm_adapters.hosts.language_model import (
    StepsOfTransformers,
    cache_name,
    language_class,
    one_cache,
)
from bvllm_adapters.hosts.splice import places_of_ids
from bvllm_adapters.hosts.trainers import beside_all_weights, for_trainers
from bvllm_videollama2.inputs import Visual, positions, prompts_to_continue


class Calls(StepsOfTransformers):
    """What our port and any wrapped model are called by; it knows its prompts' visual tokens by
    `prepare_inputs_labels_for_multimodal`.

    The methods of transformers' language model are called by its class, past those that upstream's
    own object has between: upstream's take the cache by a former name and lose it by today's, so
    that every generated word but the first would be read without what stands before it.
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
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        images: Sequence[Visual] | None = None,
        return_dict: bool | None = None,
        *,
        logits_to_keep: int | Tensor = 0,
        cache: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Logits over the spliced prompts; see `prepare_inputs_labels_for_multimodal`.

        The output's `labels` are those of the spliced prompts. A Trainer that holds
        logits beside its own labels gets them over the ids, see `for_trainers`. Given position_ids
        are for prompts without images; spliced prompts are numbered anew. The cache may come under
        either name.
        generate() asks for the last logits alone, as it finds `logits_to_keep` here.
        """
        cache = one_cache(cache, past_key_values)
        places: list[Tensor] = []
        if inputs_embeds is None and input_ids is not None:
            with places_of_ids() as places:
                input_ids, attention_mask, cache, inputs_embeds, labels = (
                    self.prepare_inputs_labels_for_multimodal(
                        input_ids, attention_mask, cache, labels, images
                    )
                )
            if inputs_embeds is not None:
                position_ids = positions(attention_mask)
        input_ids, inputs_embeds = beside_all_weights(self, input_ids, inputs_embeds)
        language_model = language_class(self)
        kwargs[cache_name(language_model.forward)] = cache
        outputs: Any = language_model.forward(
            self,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
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
        images: Sequence[Visual] | None = None,
        **kwargs: Any,
    ) -> Any:
        """New tokens only, behind prompts that may be padded on either side.

        Args:
            inputs: (B, L) ids, or None and input_ids by name.
            images: see `prepare_inputs_labels_for_multimodal`.
            kwargs: of transformers' generate, such as attention_mask and max_new_tokens.
        """
        inputs = kwargs.pop("input_ids", None) if inputs is None else inputs
        return language_class(self).generate(
            self, **prompts_to_continue(self, inputs, images, kwargs)
        )
