"""Noise that belongs to a sample, and questions that belong to a prompt."""

from __future__ import annotations

import pytest
import torch

from bvllm_adapters.balanced_tokenizer import BalancedTokenizer
from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_adapters.context import asked, asking, generators, noise_from
from bvllm_adapters.features import FrameFeatures

CONFIG = BalancedTokenizerConfig(
    num_frames=3,
    tokens_per_frame=2,
    vision_width=8,
    llm_width=8,
    qformer_width=8,
    qformer_layers=1,
    qformer_heads=2,
    vocab_size=30523,
)


def weights(tokenizer: BalancedTokenizer, videos: list[FrameFeatures]) -> list[torch.Tensor]:
    return [tokens.selection.weights for tokens in tokenizer(videos, ["what?"] * len(videos))]


def test_a_samples_noise_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    tokenizer = BalancedTokenizer(CONFIG).train()
    one, other = (FrameFeatures(torch.randn(t, 8), torch.randn(t, 4, 8)) for t in (5, 7))
    with noise_from([2**63 + 11, 3]):
        both = weights(tokenizer, [one, other])
        assert torch.equal(weights(tokenizer, [one, other])[0], both[0])
    with noise_from([3]):
        alone = weights(tokenizer, [other])
    torch.testing.assert_close(alone[0], both[1])
    with noise_from([4]):
        assert not torch.allclose(weights(tokenizer, [other])[0], alone[0])
    # A generator that is given goes before it; outside, noise is torch's own again.
    with noise_from([1, 2, 3]):
        given = tokenizer([other], ["what?"], generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(given[0].selection.weights, alone[0])
    torch.manual_seed(1)
    first = weights(tokenizer, [other])
    torch.manual_seed(1)
    assert torch.equal(weights(tokenizer, [other])[0], first[0])


def test_a_seed_for_each_visual_input() -> None:
    with noise_from([1, 2]), pytest.raises(ValueError, match="seeds: got 2, wanted 3"):
        generators(3, torch.device("cpu"))


def test_a_question_for_each_prompt() -> None:
    assert asked(1) is None
    with asking("one for all"):
        assert (asked(), asked(1)) == ("one for all", "one for all")
        with asking(["first", "second"]):
            assert (asked(0), asked(1)) == ("first", "second")
            with pytest.raises(ValueError, match="question: got 2, wanted one for each prompt"):
                asked(2)
    assert asked() is None
