"""A video of nothing, by which every batch uses every weight of the tokenizer, in one order.

Words use none of it, an image no frame selector. But devices that train together wait for the
gradient of every weight, and DeepSpeed adds up what they have in the order in which it is ready,
without a look at whose it is. What is ready last depends on what was used first: so each batch
uses all of it before anything else, for nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bvllm_adapters.balanced_tokenizer import BalancedTokenizer
from bvllm_adapters.features import FrameFeatures


def zero_of(tokenizer: BalancedTokenizer) -> Tensor:
    """0 with a gradient of zeros for each trained weight; torch's generator stays as it is."""
    config, weight = tokenizer.config, next(tokenizer.trained_parameters(), None)
    if weight is None:  # a tokenizer without training, beside a LoRA
        return torch.zeros(())
    frames = weight.new_zeros(2, config.selection_width)
    patches = weight.new_zeros(2, 1, config.vision_width)
    tokens = tokenizer(
        [FrameFeatures(frames, patches)],
        [""],
        generator=torch.Generator(weight.device).manual_seed(0),
    )
    zero: Tensor = tokens[0].tokens[:0].sum()
    return zero
