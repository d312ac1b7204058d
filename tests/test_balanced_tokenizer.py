"""The composed tokenizer; its rules for all inputs are in test_contract.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bvllm_adapters as bvllm
from bvllm_adapters import BalancedTokenizer, BalancedTokenizerConfig, FrameFeatures
from bvllm_adapters.budget_merger import shares_in_prompt
from bvllm_adapters.build import build_qformer
from bvllm_adapters.spatial_sampler import SpatialSampler
from bvllm_adapters.training.dummy_video import zero_of

SIZES = {
    "num_frames": 4, "tokens_per_frame": 3, "vision_width": 8, "llm_width": 10,
    "qformer_width": 8, "qformer_layers": 2, "qformer_heads": 2,
}  # fmt: skip


CONFIG = BalancedTokenizerConfig(**SIZES)


def tokenizer(config=None, **stages):
    torch.manual_seed(0)
    return BalancedTokenizer(BalancedTokenizerConfig(**(SIZES | (config or {}))), **stages).eval()


def video(frames=6, width=8, **change):
    return FrameFeatures(
        **({"cls": torch.randn(frames, width), "patches": torch.randn(frames, 5, width)} | change)
    )


def test_stages_can_be_left_out():
    bare = tokenizer(
        frame_selector=None, temporal_merger=None, spatial_sampler=None, budget_merger=None,
        projection=None,
    )  # fmt: skip
    given = video()
    tokens = bare([given], ["?"])[0]
    assert torch.equal(tokens.tokens, given.patches.flatten(0, 1))
    assert tokens.frame.tolist() == [frame for frame in range(6) for _ in range(5)]
    assert list(bare.parameters()) == []


def test_without_a_sampler_patches_are_merged_into_the_budget():
    patches_only = tokenizer(spatial_sampler=None)
    tokens = patches_only([video()], ["?"], max_tokens=7)[0]
    assert tokens.tokens.shape == (7, 10)


def test_a_stage_can_be_replaced():
    class LastFrame(nn.Module):
        def forward(self, cls, text_ids, *, seconds, generator):
            return bvllm.Selection.of(torch.eye(len(cls))[-1:])

    assert tokenizer(frame_selector=LastFrame())([video()], ["?"])[0].frame.tolist() == [5] * 3


class Means(nn.Module):
    """A sampler of one's own: forward() as it is documented, and names of its own besides."""

    prepare, chunk_size, norm = "not ours", None, None

    def forward(self, frames, text_ids, text_mask):
        assert len(frames) == len(text_ids) == len(text_mask)
        return frames.mean(dim=1, keepdim=True).expand(-1, 2, -1)


class OtherSampler(SpatialSampler):
    """A subclass whose forward() is its own."""

    def forward(self, frames, text_ids, text_mask=None):
        return frames[:, :2]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "sampler", [Means, lambda: OtherSampler(build_qformer(CONFIG), tokens_per_frame=2)]
)
def test_a_sampler_of_ones_own_needs_forward_alone(sampler, training):
    made = tokenizer(spatial_sampler=sampler()).train(training)
    given = video()
    (tokens,) = made([given], ["?"])
    assert len(tokens) == 2 * len(tokens.selection)
    assert len(made([given], ["?"], max_tokens=3)[0]) == 3
    assert zero_of(made) == 0
    if not training:  # patches come as the tower made them
        chosen = given.patches[tokens.selection.frame]
        wanted = made.spatial_sampler(chosen, *[torch.zeros(len(chosen), 3)] * 2)
        assert torch.equal(tokens.tokens, made.projection(wanted.flatten(0, 1)))


@pytest.mark.parametrize("evaluation", ["hard", "soft"])
def test_patches_go_through_the_samplers_norm_once(evaluation):
    made = tokenizer({"evaluation": evaluation, "max_tokens": None}, projection=None)
    nn.init.normal_(made.spatial_sampler.norm.weight)  # with ones, twice would be as once
    given, text = video(), made.question_tokenizer("?")
    (tokens,) = made([given], [text])
    normed = made.spatial_sampler.norm(given.patches)
    frames = torch.einsum("mt,tpc->mpc", tokens.selection.weights, normed)
    wanted = made.spatial_sampler.read(frames, text.expand(len(frames), -1), None)
    assert torch.allclose(tokens.tokens, wanted.flatten(0, 1), atol=1e-5)


def test_a_selector_of_ones_own_need_not_know_a_number_of_frames():
    class FirstFrame(nn.Module):
        def forward(self, cls, text_ids, *, seconds, generator):
            return bvllm.Selection.whole(torch.zeros(1).long(), len(cls))

    made = tokenizer({"frame_count": "gap", "max_frames": 3}, frame_selector=FirstFrame())
    assert made([video()], ["?"])[0].frame.tolist() == [0] * 3


def test_patches_are_read_for_chosen_frames_only():
    given = video()
    asked = []

    def read(indices):
        asked.append(indices.tolist())
        return given.patches[indices]

    made = tokenizer()
    lazy = made([video(cls=given.cls, patches=read)], ["?"])[0]
    assert torch.equal(lazy.tokens, made([given], ["?"])[0].tokens)
    assert asked == [sorted(set(lazy.selection.frame.tolist()))]


def test_training_reaches_every_parameter():
    made = tokenizer({"max_tokens": 8}).train()
    tokens = made([video(), video(1)], ["what is this?", ""], prompts=[0, 0])
    sum(t.tokens.square().sum() for t in tokens).backward()
    assert [name for name, p in made.named_parameters() if p.grad is None] == []
    assert float(made.frame_selector.queries.grad.abs().max()) > 0


def test_question_ids_may_be_given():
    made, given = tokenizer(), video()
    ids = made.question_tokenizer("what?")
    assert torch.equal(made([given], [ids])[0].tokens, made([given], ["what?"])[0].tokens)


def test_an_empty_batch_is_an_empty_list():
    assert tokenizer()([], []) == []


def test_every_visual_input_of_a_prompt_gets_a_token_before_any_gets_two():
    assert shares_in_prompt([[3] * 4, [3]], [[9, 1, 1, 1], [1]], 2) == [[1, 0, 0, 0], [1]]
    assert shares_in_prompt([[3] * 4, [3]], [[1, 1, 9, 1], [1]], 3) == [[1, 0, 1, 0], [1]]
    assert shares_in_prompt([[3] * 2], [[1, 1]], None) == [[3, 3]]


@pytest.mark.parametrize(
    ("num_frames", "max_tokens", "wanted"),
    [(3600, None, 12), (2, None, 6), (1, None, 3), ([3600, 1], None, 15), ([3600, 1], 13, 13)],
)
def test_plan(num_frames, max_tokens, wanted):
    assert bvllm.plan(BalancedTokenizerConfig(**SIZES), num_frames, max_tokens=max_tokens) == wanted


@pytest.mark.parametrize(
    ("stages", "options"),
    [
        ({"spatial_sampler": None}, {"tokens_per_frame": 5}),
        ({"frame_selector": None}, {"all_frames": True}),
        (
            {"frame_selector": None, "spatial_sampler": None},
            {"all_frames": True, "tokens_per_frame": 5},
        ),
        ({"spatial_sampler": Means()}, {"tokens_per_frame": 2}),
    ],
)
@pytest.mark.parametrize("max_tokens", [None, 7])
def test_plan_bounds_a_tokenizer_without_stages(stages, options, max_tokens):
    made = tokenizer(**stages)
    lengths = [6, 1, 9]
    tokens = made([video(n) for n in lengths], ["?"] * 3, prompts=[0] * 3, max_tokens=max_tokens)
    planned = bvllm.plan(made.config, lengths, max_tokens=max_tokens, **options)
    assert sum(map(len, tokens)) <= planned
    if made.frame_selector is None:
        assert sum(map(len, tokens)) == planned


def test_plan_names_what_is_wrong():
    with pytest.raises(ValueError, match="tokens_per_frame: got 0"):
        bvllm.plan(BalancedTokenizerConfig(), 5, tokens_per_frame=0)
    with pytest.raises(ValueError, match="num_frames: got 0"):
        bvllm.plan(BalancedTokenizerConfig(), 0)
    with pytest.raises(ValueError, match="max_tokens: got 0"):
        bvllm.plan(BalancedTokenizerConfig(), 5, max_tokens=0)


@pytest.mark.parametrize(
    ("features", "questions", "options", "message"),
    [
        ([video()], [], {}, "questions: got 0, wanted 1 as features"),
        (video(), "what?", {}, "got a single one, wanted a list of each"),
        ([video(width=7)], ["?"], {}, r"features\[0\].cls: got width 7, wanted vision_width=8"),
        (
            [video(patches=torch.zeros(6, 5, 9))], ["?"], {},
            r"features\[0\].patches: got width 9, wanted vision_width=8",
        ),
        ([video()], [3], {}, r"questions\[0\]: got int, wanted a string or"),
        ([video()], [torch.zeros(2)], {}, r"questions\[0\]: got Tensor, wanted a string or"),
        ([video()], ["?"], {"prompts": []}, "prompts: got 0, wanted 1 as features"),
        ([video()], ["?"], {"max_tokens": 0}, "max_tokens: got 0, wanted an int >= 1"),
        ([video()], ["?"], {"queries": "a"}, "queries: got 'a', wanted 1, one for each question"),
        ([video()], ["?"], {"queries": ["a"] * 2}, "queries: got 2, wanted 1, one for each"),
        ([video()], ["?"], {"queries": ["a"]}, "query: got 'a', wanted None, as a FrameSelector"),
    ],
)  # fmt: skip
def test_wrong_input_is_named(features, questions, options, message):
    with pytest.raises(ValueError, match=message):
        tokenizer()(features, questions, **options)


def test_pictures_of_unlike_sizes_are_sampled_as_alone():
    sampled = tokenizer().eval()
    inputs = [video(), video(patches=torch.randn(6, 4, 8)), video(patches=torch.randn(6, 5, 8))]
    questions = ["what?", "", "why is it so?"]
    for made, one, question in zip(sampled(inputs, questions), inputs, questions, strict=True):
        (alone,) = sampled([one], [question])
        torch.testing.assert_close(made.tokens, alone.tokens, rtol=0, atol=1e-6)
        assert made.slot.equal(alone.slot)


def test_an_input_gets_no_more_tokens_than_its_host_has_places_for():
    soft = tokenizer({"num_frames": 12, "merge_threshold": 1.0}).train()
    for room in (1, 3, 7, 12):
        torch.manual_seed(0)
        limited, free = soft([video(room=room), video()], ["?", "?"], prompts=[0, 0])
        assert len(limited) == room and len(free) > 12
        torch.manual_seed(0)
        both = soft([video(room=room), video()], ["?", "?"], prompts=[0, 0], max_tokens=29)
        assert sum(map(len, both)) == min(29, room + len(free)) and len(both[0]) <= room


def test_a_budget_without_a_merger_is_refused():
    with pytest.raises(ValueError, match=r"budget_merger: got None, .*max_tokens=9 is a limit"):
        tokenizer({"max_tokens": 9}, budget_merger=None)
    with pytest.raises(ValueError, match="max_tokens: got 9, wanted None without a budget_merger"):
        tokenizer(budget_merger=None)([video()], ["?"], max_tokens=9)


def test_a_damaged_file_is_refused_with_a_list(tmp_path):
    tokenizer().save_pretrained(tmp_path)
    BalancedTokenizerConfig(**(SIZES | {"qformer_layers": 1})).save(
        tmp_path / "balanced_tokenizer.json"
    )
    with pytest.raises(ValueError, match=r"unexpected: frame_selector\.qformer\.layers\.0\."):
        BalancedTokenizer.from_pretrained(tmp_path)
    BalancedTokenizerConfig(**(SIZES | {"llm_width": 11})).save(
        tmp_path / "balanced_tokenizer.json"
    )
    with pytest.raises(ValueError, match=r"of another shape: .*\(10,\), wanted \(11,\)"):
        BalancedTokenizer.from_pretrained(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: not a folder"):
        BalancedTokenizer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no balanced_tokenizer.json"):
        BalancedTokenizer.from_pretrained(tmp_path)
