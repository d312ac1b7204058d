from __future__ import annotations

import json

import pytest

from bvllm_adapters import BalancedTokenizerConfig, plan


def test_defaults_are_the_papers():
    config = BalancedTokenizerConfig()
    assert (config.num_frames, config.tokens_per_frame, config.max_tokens) == (32, 32, None)
    assert (config.temperature, config.merge_threshold) == (0.1, 0.75)


@pytest.mark.parametrize("value", [10**9, 10**40])
@pytest.mark.parametrize(
    ("name", "most"),
    [("qformer_layers", 1024), ("num_frames", 2**24), ("qformer_ffn_width", 2**24)],
)
def test_sizes_have_a_bound(name, most, value):
    """Before anything is made of them: they may stand in somebody's file."""
    with pytest.raises(ValueError, match=f"{name}: got {value}, wanted an int from 1 to {most}"):
        BalancedTokenizerConfig(**{name: value})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_frames": 0}, ValueError, "num_frames: got 0, wanted an int >= 1"),
        ({"num_frames": True}, TypeError, r"num_frames: got True \(bool\)"),
        ({"tokens_per_frame": 2.0}, TypeError, r"tokens_per_frame: got 2.0 \(float\)"),
        ({"max_tokens": 0}, ValueError, "max_tokens: got 0, wanted an int >= 1"),
        ({"qformer_ffn_width": 0}, ValueError, "qformer_ffn_width: got 0"),
        ({"temperature": 0}, ValueError, "temperature: got 0, wanted a number > 0"),
        ({"temperature": float("nan")}, ValueError, "temperature: got nan"),
        ({"temperature": "hot"}, TypeError, "temperature: got 'hot'"),
        (
            {"merge_threshold": 1.5},
            ValueError,
            "merge_threshold: got 1.5, .* > 0 and <= 1",
        ),
        ({"qformer_heads": 7}, ValueError, "qformer_heads: got 7, wanted a divisor"),
        ({"max_question_tokens": 600}, ValueError, "max_question_tokens: got 600, .* 2 to 512"),
        ({"frame_feature": "median"}, ValueError, "frame_feature: got 'median', wanted one of"),
        ({"evaluation": "greedy"}, ValueError, "evaluation: got 'greedy'"),
        ({"projection": "conv"}, ValueError, "projection: got 'conv'"),
        ({"frame_count": "most"}, ValueError, "frame_count: got 'most', wanted one of"),
        ({"min_frames": 0}, ValueError, "min_frames: got 0, wanted an int >= 1"),
        ({"max_frames": 0}, ValueError, "max_frames: got 0, wanted an int >= 1"),
        ({"frame_mass": 0.0}, ValueError, r"frame_mass: got 0.0, wanted a number > 0 and <= 1"),
        (
            {"frame_count": "gap"},
            ValueError,
            "max_frames: got None with frame_count='gap', wanted an int >= 1, or max_tokens",
        ),
        (
            {"frame_count": "mass", "min_frames": 9, "max_frames": 8, "max_tokens": 99},
            ValueError,
            "min_frames: got 9, wanted at most max_frames=8",
        ),
        (
            {"frame_count": "mass", "min_frames": 9, "max_tokens": 8},
            ValueError,
            "min_frames: got 9, wanted at most max_tokens=8",
        ),
        ({"time_encoding": 1}, TypeError, "time_encoding: got 1, wanted True or False"),
        (
            {"vocabulary": ["[PAD]", "red", "[UNK]"]},
            ValueError,
            r"vocabulary: got .*'red', '\[UNK\]'\]..., wanted distinct words, \[PAD\] the first",
        ),
        (
            {"vocabulary": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], "vocab_size": 5},
            ValueError,
            "vocabulary: got 4 words, wanted 5 as vocab_size",
        ),
        ({"time_encoding": True, "vision_width": 7}, ValueError, "time_encoding: .*vision_width=7"),
    ],
)
def test_wrong_settings_are_named(change, error, message):
    with pytest.raises(error, match=message):
        BalancedTokenizerConfig(**change)


def test_json_round_trip(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red"]
    config = BalancedTokenizerConfig(
        max_tokens=512, temperature=0.3, frame_feature="mean", vocabulary=words, vocab_size=5
    )
    config.save(tmp_path / "config.json")
    assert BalancedTokenizerConfig.load(tmp_path / "config.json") == config


def test_an_adaptive_number_of_frames_is_kept_and_older_files_have_none(tmp_path):
    config = BalancedTokenizerConfig(
        max_tokens=512, frame_count="mass", min_frames=4, max_frames=64, frame_mass=0.8
    )
    config.save(tmp_path / "config.json")
    assert BalancedTokenizerConfig.load(tmp_path / "config.json") == config
    older = BalancedTokenizerConfig(max_tokens=512).to_dict()
    for name in ("frame_count", "min_frames", "max_frames", "frame_mass"):
        del older[name]
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert BalancedTokenizerConfig.load(tmp_path / "config.json").frame_count == "fixed"


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({}, 32),
        ({"max_frames": 5}, 32),
        ({"frame_count": "gap", "max_frames": 64, "max_tokens": 512}, 64),
        ({"frame_count": "mass", "max_tokens": 512}, 512),
    ],
)
def test_most_frames(settings, most):
    config = BalancedTokenizerConfig(**settings)
    assert config.most_frames == config.frames_within(None) == most


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({}, 32),
        ({"frame_count": "gap", "max_frames": 64, "max_tokens": 512}, 64),
        ({"frame_count": "mass", "max_tokens": 512}, 7),
    ],
)
def test_frames_within_another_budget(settings, most):
    assert BalancedTokenizerConfig(**settings).frames_within(7) == most


@pytest.mark.parametrize(
    ("settings", "num_frames", "options", "wanted"),
    [
        ({"frame_count": "gap", "max_frames": 64}, 3600, {}, 64 * 32),
        ({"frame_count": "gap", "max_frames": 64}, [3600, 10, 1], {}, 75 * 32),
        ({"frame_count": "gap", "max_frames": 8}, 3600, {}, 8 * 32),
        ({"frame_count": "gap", "max_frames": 8}, 3600, {"training": True}, 32 * 32),
        ({"frame_count": "mass", "max_tokens": 512}, 3600, {}, 512),
        ({"frame_count": "mass", "max_tokens": 512}, 3600, {"max_tokens": 900}, 900),
        ({"frame_count": "mass", "max_tokens": 512}, 10, {}, 320),
        # Soft choices of two frames may all be different blends.
        ({"evaluation": "soft"}, 2, {}, 32 * 32),
        ({"evaluation": "soft"}, 1, {}, 32),
        ({}, 2, {"training": True}, 32 * 32),
        ({}, 2, {}, 64),
    ],
)
def test_plan_bounds_what_may_be_chosen(settings, num_frames, options, wanted):
    assert plan(BalancedTokenizerConfig(**settings), num_frames, **options) == wanted


def test_unknown_names_are_listed(tmp_path):
    with pytest.raises(ValueError, match=r"unknown names \['num_frame'\]"):
        BalancedTokenizerConfig.from_dict({"num_frame": 3})
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="holds a list, wanted a JSON object"):
        BalancedTokenizerConfig.load(tmp_path / "config.json")
