"""VideoLLaMA2 as it is, against the same model with a visual-token budget.

    python examples/wrap_videollama2.py VIDEO --checkpoint FOLDER --adapter FOLDER
    python examples/wrap_videollama2.py

Without a checkpoint a tiny one with random weights is made on the spot, in the published layout:
its answers are nonsense, its numbers of tokens and its stages are real.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bvllm_adapters as bvllm
from bvllm_adapters.ledger import ledger, peak_memory, stage
from bvllm_videollama2 import HOST
from bvllm_videollama2.preprocessing import frame_indices

BUNNY = Path(__file__).parent / "big_buck_bunny.mp4"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("video", nargs="?", default=BUNNY, type=Path)
    parser.add_argument("--checkpoint", type=Path, help="folder; none: a tiny one, made now")
    parser.add_argument("--base", help="folder or hub id that a LoRA or projector folder changes")
    parser.add_argument("--adapter", help="folder of a trained BalancedTokenizer; none: untrained")
    parser.add_argument("--question", default="What is the rabbit doing?")
    parser.add_argument("--max-tokens", type=int, default=256, help="the budget")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="of the answer")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as made:
        folder = given.checkpoint
        if folder is None:
            print("no --checkpoint: a tiny one with random weights, so the answers are nonsense\n")
            folder = tiny(Path(made))
        dtype = torch.float16 if given.device.startswith("cuda") else torch.float32
        model: Any = bvllm.load(folder, base=given.base, dtype=dtype, host="bvllm_videollama2:HOST")
        model.to(given.device)
        processor = HOST.processor(folder)
        compare(model, processor, given)


def compare(model: Any, processor: Any, given: argparse.Namespace) -> None:
    """Print the answer, visual tokens, seconds and memory of the host alone, then wrapped."""
    with torch.inference_mode(), ledger() as seconds, peak_memory() as peaks:
        with stage("decode"):
            frames = host_frames(given.video, processor.num_frames)
        with stage("tower"):
            ids = processor.ids(processor.prompt(given.question, "video"), "video")
            ids = ids.to(given.device)
            images = [(processor.pixels(frames), "video")]
            prompt = model.prepare_inputs_labels_for_multimodal(ids, None, None, None, images)[3]
        with stage("generate"):
            said = model.generate(
                inputs_embeds=prompt,
                attention_mask=torch.ones(prompt.shape[:2], dtype=torch.int64, device=ids.device),
                max_new_tokens=given.max_new_tokens,
                **processor.settings(model),
            )
    text = processor.tokenizer.decode(said[0], skip_special_tokens=True)
    report("alone", text, len(frames), prompt.shape[1] - (ids.shape[1] - 1), seconds, peaks)

    setup = {"adapter": given.adapter} if given.adapter else {}
    bvllm.wrap(model, max_tokens=given.max_tokens, host="bvllm_videollama2:HOST", **setup)
    with peak_memory() as peaks:
        answer = bvllm.ask(
            model, given.video, given.question, processor=processor,
            max_new_tokens=given.max_new_tokens,
        )  # fmt: skip
    trace = answer.trace
    report("wrapped", answer.text, trace.frames_decoded, trace.num_tokens, trace.seconds, peaks)


def report(
    name: str,
    text: str,
    frames: int,
    tokens: int,
    seconds: dict[str, float],
    peaks: dict[str, int],
) -> None:
    print(f"{name}\n  answer   {text.strip()!r}")
    print(f"  frames   {frames}\n  tokens   {tokens} visual tokens")
    print("  seconds  " + ", ".join(f"{what} {time:.3f}" for what, time in seconds.items()))
    memory = ", ".join(f"{what} {peak / 2**20:.0f}" for what, peak in peaks.items())
    print(f"  peak MiB {memory}\n")


def host_frames(video: Path, num_frames: int) -> np.ndarray[Any, Any]:
    """The frames that the host itself would look at: as many as it was trained on."""
    about = bvllm.read_video(video, max_frames=1)
    step = about.duration / about.frame_count
    frames = []
    for index in frame_indices(about.frame_count, num_frames=num_frames):
        middle = (index + 0.5) * step
        frames.append(bvllm.read_video(video, start=middle, end=middle + 1e-6, fps=None).frames[0])
    return np.stack(frames)


def tiny(folder: Path) -> Path:
    from bvllm_videollama2.tiny import tiny_checkpoint

    tiny_checkpoint(folder)
    return folder


if __name__ == "__main__":
    logging.basicConfig(format="note: %(message)s\n")
    main()
