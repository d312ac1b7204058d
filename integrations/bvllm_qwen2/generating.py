"""generate() as transformers has it, of prompts whose visual tokens have no ids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bvllm_adapters.hosts.generation import check_settings, settled
from bvllm_adapters.hosts.splice import SplicedPrompts
from bvllm_qwen2.inputs import VisualTensors


class Generation:
    """Mixin of a model that splices visual tokens into its prompts; see its `forward`."""

    @torch.no_grad()
    def generate(  # our inputs go by name
        self: Any,
        input_ids: Tensor | None = None,
        *,
        inputs: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frame_counts: Tensor | None = None,
        seconds: Tensor | None = None,
        question_ids: Tensor | None = None,
        question_mask: Tensor | None = None,
        question_text: Tensor | None = None,
        labels: Tensor | None = None,
        max_tokens: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """The prompts' ids as they came and, behind them, the answers', as transformers has it.

        Visual inputs are encoded once, whatever the number of beams. Each of them is the one id
        of its placeholder for max_length, streamers, criteria and processors of logits.

        Args: see `forward`. inputs: another name of input_ids. labels: not looked at; a
            Seq2SeqTrainer hands them on. kwargs: of transformers' generate, as max_new_tokens=64.

        Raises:
            TypeError, ValueError: see `forward` and `bvllm_adapters.hosts.generation`.
        """
        input_ids = inputs if input_ids is None else input_ids
        if input_ids is None:
            raise ValueError("input_ids: got None, wanted the ids of the prompts")
        check_settings(kwargs)
        visual = VisualTensors(
            pixel_values, frame_counts, seconds, question_ids, question_mask, question_text
        )
        tokens = self.visual_tokens(input_ids, visual, attention_mask, max_tokens=max_tokens)
        prompts = self.splice(input_ids, tokens, attention_mask=attention_mask, padding_side="left")
        return self.continue_prompts(prompts, input_ids=input_ids, **kwargs)

    def continue_prompts(
        self: Any, prompts: SplicedPrompts, *, input_ids: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """New tokens behind left-padded spliced prompts, by the language model's own generate().

        Args:
            input_ids: (B, L) of the prompts, which then stand before the new ones; None: new ones
                only.
        """
        length = 0 if input_ids is None else input_ids.shape[1]
        settings = settled(self.generation_config, kwargs, prompt_length=length, answers=False)
        words = input_ids
        if input_ids is not None:  # a placeholder need be no word, and penalties look words up
            known = self.get_input_embeddings().weight.shape[0]
            words = input_ids.masked_fill(input_ids >= known, 0)
        output: Any = self.language_model.generate(
            words,
            inputs_embeds=prompts.inputs_embeds,
            attention_mask=prompts.attention_mask,
            **settings,
        )
        if input_ids is not None:
            ids = output if isinstance(output, Tensor) else output.sequences
            times = len(ids) // len(input_ids)
            ids[:, :length] = input_ids.repeat_interleave(times, dim=0)
        return output
