from __future__ import annotations

import json

import pytest

from bvllm_adapters import BalancedTokenizerConfig


def test_defaults_are_the_papers():
    config = BalancedTokenizerConfig()
    assert (config.num_frames, config.tokens_per_frame, config.max_tokens) == (32, 32, None)
    assert (config.temperature, config.merge_threshold) == (0.1, 0.75)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_frames": 0}, ValueError, "num_frames: got 0, wanted an int >= 1"),
        ({"num_frames": True}, TypeError, r"num_frames: got True \(bool\)"),
        ({"tokens_per_frame": 2.0}, TypeError, r"tokens_per_frame: got 2.0 \(float\)"),
        ({"max_tokens": 0}, ValueError, "max_tokens: got 0, wanted an int >= 1"),
        ({"qformer_ffn_width": 0}, ValueError, "qformer_ffn_width: got 0"),
        ({"temperature": 0}, ValueError, "temperature: got 0, wanted a finite number > 0"),
        ({"temperature": float("nan")}, ValueError, "temperature: got nan"),
        ({"temperature": "hot"}, TypeError, "temperature: got 'hot'"),
        ({"merge_threshold": 1.5}, ValueError, r"merge_threshold: got 1.5, .* \(0, 1\]"),
        ({"qformer_heads": 7}, ValueError, "qformer_heads: got 7, wanted a divisor"),
        ({"max_question_tokens": 600}, ValueError, "max_question_tokens: got 600, .* 2 to 512"),
        ({"frame_feature": "median"}, ValueError, "frame_feature: got 'median', wanted one of"),
        ({"evaluation": "greedy"}, ValueError, "evaluation: got 'greedy'"),
        ({"projection": "conv"}, ValueError, "projection: got 'conv'"),
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


def test_unknown_names_are_listed(tmp_path):
    with pytest.raises(ValueError, match=r"unknown names \['num_frame'\]"):
        BalancedTokenizerConfig.from_dict({"num_frame": 3})
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="holds list, wanted a JSON object"):
        BalancedTokenizerConfig.load(tmp_path / "config.json")
