"""`bvllm plan`: how many visual tokens there will be, before anything is encoded."""

from __future__ import annotations

import argparse

TEXT = "how many visual tokens a video gives at most"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("frames", type=int, help="frames that are read, at 1 fps: its seconds")
    parser.add_argument("--num-frames", type=int, default=32, help="frames chosen at most (32)")
    parser.add_argument("--tokens-per-frame", type=int, default=32, help="tokens of each (32)")
    parser.add_argument("--max-tokens", type=int, help="the budget; none: no limit")


def run(options: argparse.Namespace) -> int:
    from bvllm_adapters.config import BalancedTokenizerConfig, plan

    config = BalancedTokenizerConfig(
        num_frames=options.num_frames,
        tokens_per_frame=options.tokens_per_frame,
        max_tokens=options.max_tokens,
    )
    most = plan(config, options.frames)
    print(f"{most} visual tokens at most for {options.frames} frames")
    return 0
