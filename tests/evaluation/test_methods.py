import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bvllm_adapters import BalancedTokenizerConfig, FrameFeatures
from bvllm_adapters.evaluation.methods import METHODS, build_method

CONFIG = BalancedTokenizerConfig(
    num_frames=4,
    tokens_per_frame=4,
    max_tokens=16,
    vision_width=8,
    llm_width=12,
    qformer_width=8,
    qformer_layers=1,
    qformer_heads=2,
)


def video(frames: int, seed: int = 0) -> FrameFeatures:
    torch.manual_seed(seed)
    return FrameFeatures(torch.randn(frames, 8), torch.randn(frames, 5, 8))


def tokens_of(method: str, features: FrameFeatures, question: str = "what?", **options):
    torch.manual_seed(1)
    tokenizer = build_method(method, CONFIG).eval()
    return tokenizer([features], [question], **options)[0]


@pytest.mark.parametrize("method", METHODS)
@given(frames=st.integers(2, 60), budget=st.integers(2, 16))
def test_all_keep_the_same_budget(method, frames, budget):
    found = tokens_of(method, video(frames), max_tokens=budget)
    assert 1 <= len(found) <= budget


@pytest.mark.parametrize("method", ["uniform", "random", "two_tokens"])
def test_those_that_cannot_choose_spread_the_whole_budget(method):
    found = tokens_of(method, video(60))
    assert len(found) == 16
    assert len(set(found.frame.tolist())) == 8


def test_uniform_takes_the_middles_of_equal_parts():
    assert tokens_of("uniform", video(16)).frame.unique().tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    assert tokens_of("uniform", video(3)).frame.unique().tolist() == [0, 1, 2]


def test_random_frames_are_repeatable_and_not_always_the_same():
    draws = [tokens_of("random", video(200, seed)).frame.unique().tolist() for seed in range(5)]
    again = [tokens_of("random", video(200, seed)).frame.unique().tolist() for seed in range(5)]
    assert draws == again
    assert len(set(map(tuple, draws))) == 5


@pytest.mark.parametrize("method", ["uniform", "random", "two_tokens", "no_question"])
def test_the_question_does_not_move_the_frames(method):
    features = video(100)
    questions = ["what digit is red?", "where?", ""]
    frames = {tuple(tokens_of(method, features, q).frame.tolist()) for q in questions}
    assert len(frames) == 1


def test_the_question_moves_a_b_vllm():
    features = video(100)
    tokenizer = build_method("bvllm", CONFIG).eval()
    for parameter in tokenizer.frame_selector.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    frames = {
        tuple(tokenizer([features], [q])[0].frame.tolist())
        for q in ["what digit is red?", "where?", "", "how many cats?"]
    }
    assert len(frames) > 1


@pytest.mark.parametrize("method", METHODS)
def test_the_question_reaches_the_tokens_of_each_frame(method):
    features = video(1)  # nothing to choose
    one, other = (tokens_of(method, features, q).tokens for q in ["what is red?", "where is it?"])
    assert not torch.equal(one, other)


def test_two_tokens_are_context_and_content():
    """The content is the patches' mean whatever is asked, the context is not."""
    tokenizer = build_method("two_tokens", CONFIG).eval()
    frames, sampler = torch.randn(3, 5, 8), tokenizer.spatial_sampler
    for parameter in sampler.qformer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ids = torch.tensor([[101, 2054, 102]] * 3), torch.tensor([[101, 2073, 102]] * 3)
    one, other = (sampler(frames, of, prepared=True) for of in ids)
    assert one.shape == (3, 2, 8)
    assert torch.equal(one[:, 1], other[:, 1])
    assert torch.allclose(one[:, 1], sampler.content(frames.mean(dim=1)))
    assert not torch.allclose(one[:, 0], other[:, 0])


def test_methods_that_are_not_are_refused():
    with pytest.raises(ValueError, match="method: got 'best', wanted one of"):
        build_method("best", CONFIG)


def test_a_comparison_needs_a_budget():
    with pytest.raises(ValueError, match="max_tokens: got None, wanted at least 2"):
        build_method("uniform", BalancedTokenizerConfig())
