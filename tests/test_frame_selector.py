from __future__ import annotations

import math

import pytest
import torch

from bvllm_adapters import BalancedTokenizerConfig, TemporalMerger
from bvllm_adapters.build import build_selector
from bvllm_adapters.frame_count import FrameCount
from bvllm_adapters.frame_selector import gumbel_noise, one_hot_argmax, sinusoidal

TEXT = torch.tensor([101, 2054, 102])
SIZES = {
    "num_frames": 6, "vision_width": 12, "qformer_width": 8, "qformer_layers": 2,
    "qformer_heads": 2, "vocab_size": 30523,
}  # fmt: skip


def selector(**settings):
    torch.manual_seed(0)
    made = build_selector(BalancedTokenizerConfig(**SIZES, **settings))
    for parameter in made.parameters():  # as after training: at first all queries are alike
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return made


def test_scores_are_the_scaled_products_of_what_the_queries_became():
    made = selector(normalize_cls=False).eval()
    cls = torch.randn(9, 12)
    read = made.qformer(made.queries[None], cls[None], TEXT[None])[0]
    wanted = (read @ made.projection.weight.T + made.projection.bias) @ cls.T / math.sqrt(12)
    assert torch.allclose(made.scores(cls, TEXT), wanted, atol=1e-5)


def test_evaluation_takes_the_best_frames_in_time_order():
    made = selector().eval()
    cls = torch.randn(9, 12)
    selection = made(cls, TEXT)
    best = made.scores(cls, TEXT).argmax(dim=1)
    assert selection.frame.tolist() == sorted(best.tolist())
    assert selection.weights.unique().tolist() == [0, 1]


def test_the_question_changes_the_choice():
    made = selector().eval()
    cls = torch.randn(50, 12)
    frames = {tuple(made(cls, torch.tensor([101, word, 102])).frame.tolist()) for word in range(9)}
    assert len(frames) > 1


def test_training_is_soft_and_noisy_and_a_generator_repeats_it():
    made = selector(temperature=1.0).train()
    cls = torch.randn(9, 12)

    def run(seed):
        return made(cls, TEXT, generator=torch.Generator().manual_seed(seed)).weights.detach()

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert torch.allclose(run(1).sum(dim=1), torch.ones(6))
    assert 0 < float(run(1).min()) < float(run(1).max()) < 1


def test_lower_temperature_is_nearer_to_one_hot():
    cls = torch.randn(40, 12)
    largest = [
        float(
            selector(temperature=t).train()(cls, TEXT, generator=torch.Generator().manual_seed(0))
            .weights.detach().amax(dim=1).mean()
        )
        for t in (1.0, 0.5, 0.1)
    ]  # fmt: skip
    assert largest == sorted(largest)


def test_straight_through_is_one_hot_with_the_gradient_of_the_soft_choice():
    cls = torch.randn(9, 12)
    gradients = []
    for straight_through in (False, True):
        made = selector(straight_through=straight_through).train()
        scores = made.scores(cls, TEXT)
        weights = made.choose(scores, torch.Generator().manual_seed(0))
        if straight_through:
            hard = weights.detach().round()
            assert torch.allclose(weights, hard, atol=1e-6)
            assert hard.sum(dim=1).tolist() == [1] * 6
        (weights * torch.arange(9.0)).sum().backward()
        gradients.append(made.queries.grad)
    assert float(gradients[0].abs().max()) > 0
    assert torch.allclose(*gradients, atol=1e-5)


def test_scores_and_weights_are_float32_under_autocast():
    made = selector().eval()
    with torch.autocast("cpu", torch.bfloat16):
        selection = made(torch.randn(9, 12), TEXT)
        assert made.scores(torch.randn(9, 12), TEXT).dtype == torch.float32
        merged = TemporalMerger()(selection)
    assert merged.weights.dtype == merged.size.dtype == torch.float32
    assert torch.equal(merged.weights.sum(dim=1), torch.ones(len(merged)))


def test_a_limited_support_mixes_only_the_best_frames():
    limited, free = selector(selection_support=3), selector()
    cls = torch.randn(9, 12)
    selection = limited(cls, TEXT, generator=torch.Generator().manual_seed(1))
    scores = free.scores(cls, TEXT)
    best = [set(row.topk(3).indices.tolist()) for row in scores]
    found = [set(row.nonzero().squeeze(1).tolist()) for row in selection.support]
    assert sorted(map(sorted, found)) == sorted(map(sorted, best))
    assert not selection.weights[~selection.support].any()
    assert torch.allclose(selection.weights.sum(dim=1), torch.ones(6))
    # Within it, weights keep the proportions that they have without it.
    weights = limited.choose(scores, torch.Generator().manual_seed(1), limited.support_of(scores))
    others = free.choose(scores, torch.Generator().manual_seed(1))
    others = others * limited.support_of(scores)
    assert torch.allclose(weights, others / others.sum(dim=1, keepdim=True), atol=1e-5)


def test_support_is_all_frames_where_it_is_not_needed():
    cls = torch.randn(9, 12)
    assert selector(selection_support=9)(cls, TEXT).support is None
    assert selector()(cls, TEXT).support is None
    hard = selector(selection_support=3).eval()(cls, TEXT)
    assert hard.support is None
    assert torch.equal(hard.weights, selector().eval()(cls, TEXT).weights)


def test_the_number_of_frames_may_follow_the_scores():
    assert selector().frame_count is None
    made = selector(frame_count="mass", min_frames=3, max_frames=20, frame_mass=0.8).eval()
    assert made.frame_count == FrameCount(by="mass", least=3, most=20, mass=0.8)
    cls = torch.randn(40, 12)
    chosen = made(cls, TEXT)
    wanted = made.frame_count.select(made.scores(cls, TEXT))
    assert torch.equal(chosen.weights, wanted.weights)
    assert torch.equal(chosen.size, wanted.size)
    assert 6 < len(chosen) <= 20  # more than there are queries
    fewer = made(cls, TEXT, max_frames=5)
    assert len(fewer) == 5 and set(fewer.frame.tolist()) < set(chosen.frame.tolist())
    assert len(made.train()(cls, TEXT)) == 6


def test_sampling_in_evaluation_is_noisy_and_soft_evaluation_is_not():
    cls = torch.randn(9, 12)
    sample, soft = selector(evaluation="sample").eval(), selector(evaluation="soft").eval()
    torch.manual_seed(1)
    assert not torch.equal(sample(cls, TEXT).weights, sample(cls, TEXT).weights)
    assert torch.equal(soft(cls, TEXT).weights, soft(cls, TEXT).weights)
    best = soft.scores(cls, TEXT).argmax(dim=1)
    assert soft(cls, TEXT).frame.tolist() == sorted(best.tolist())


def test_gumbel_noise_has_the_distribution_of_its_name():
    noise = gumbel_noise(torch.zeros(400, 500), torch.Generator().manual_seed(0))
    assert torch.isfinite(noise).all()
    assert abs(float(noise.mean()) - 0.5772) < 0.01  # Euler's constant
    assert abs(float(noise.var()) - math.pi**2 / 6) < 0.02


def test_equal_scores_choose_the_first_frame():
    assert one_hot_argmax(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])).tolist() == [
        [0, 1, 0],
        [1, 0, 0],
    ]


def test_time_encoding_tells_early_from_late():
    made = selector(time_encoding=True).eval()
    cls = torch.randn(1, 12).expand(9, 12)  # a still video
    scores = made.scores(cls, TEXT, seconds=torch.arange(9.0)).detach()
    assert float(scores.std(dim=1).min()) > 1e-3
    plain = selector().eval().scores(cls, TEXT).detach()
    assert float(plain.std(dim=1).max()) < 1e-6
    with pytest.raises(ValueError, match="seconds: got None, wanted"):
        made(cls, TEXT)
    code = sinusoidal(torch.arange(3600.0), 64)
    assert torch.cdist(code, code).add(torch.eye(3600) * 9).min() > 1e-3  # every second its own
