"""LLaMA-VID with and without a token budget: the same question, the same video.

    python examples/wrap_llama_vid.py --checkpoint llama-vid-7b-full-224-video-fps-1 clip.mp4 "..."

Without --checkpoint a tiny random model is made on the spot: it runs offline, and talks nonsense.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

import bvllm_adapters as bvllm
from bvllm_adapters.hosts.splice import splice
from bvllm_adapters.ledger import ledger, peak_memory, stage
from bvllm_adapters.video.read import Video, read_video
from bvllm_llama_vid.configuration import IMAGE_TOKEN_ID

HOST = "bvllm_llama_vid:HOST"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "video", nargs="?", default=str(Path(__file__).parent / "big_buck_bunny.mp4")
    )
    parser.add_argument("question", nargs="?", default="What happens in the video?")
    parser.add_argument("--checkpoint", help="folder or hub id of a LLaMA-VID")
    parser.add_argument("--base", help="folder of the model that a LoRA or projector changes")
    parser.add_argument("--adapter", help="folder that bvllm.save_adapter wrote")
    parser.add_argument("--max-tokens", type=int, default=64, help="budget of visual tokens")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = args.checkpoint
        if checkpoint is None:
            from bvllm_llama_vid.tiny import write_tiny_checkpoint

            print("no --checkpoint: a tiny model with random weights, its answers mean nothing")
            checkpoint = scratch
            write_tiny_checkpoint(Path(checkpoint))
        run(checkpoint, args)


@torch.inference_mode()
def run(checkpoint: str, args: argparse.Namespace) -> None:
    model: Any = bvllm.load(checkpoint, base=args.base, dtype=getattr(torch, args.dtype), host=HOST)
    if torch.cuda.is_available():
        model.cuda()
    processor = bvllm.hosts.find_host(HOST).processor(Path(model.config._name_or_path))
    video = read_video(args.video)
    new = {"max_new_tokens": args.max_new_tokens, "do_sample": False}

    with peak_memory() as peaks:
        text, tokens, seconds = baseline(model, processor, video, args.question, new)
    show("baseline, as upstream", text, tokens, seconds, peaks)

    budget = {"max_tokens": args.max_tokens}
    bvllm.wrap(model, **budget, adapter=args.adapter, host=HOST)
    with peak_memory() as peaks:
        answer = bvllm.ask(model, video, args.question, processor=processor, **new)
    show(
        f"wrapped, at most {args.max_tokens} visual tokens",
        answer.text,
        answer.trace.num_tokens,
        answer.trace.seconds,
        peaks,
    )
    print(answer.trace)


def baseline(
    model: Any, processor: Any, video: Video, question: str, new: dict[str, Any]
) -> tuple[str, int, dict[str, float]]:
    """The host's own way: 1 + n tokens for each frame, however many frames there are."""
    ids = processor.tokenizer(processor.prompt(question))[None].to(model.device)
    with ledger() as seconds:
        with stage("tower"):
            features = model.get_vision_tower()(processor.pixels(video.frames))
        with stage("context attention"):
            tokens = model.vlm_attention(features, [[question]], [len(features)])[0][0]
        with stage("generate"):
            prompt = splice(ids, model.get_input_embeddings(), [tokens], [IMAGE_TOKEN_ID])
            out = model.generate(
                inputs_embeds=prompt.inputs_embeds, attention_mask=prompt.attention_mask, **new
            )
    return processor.tokenizer.decode(out[0]), len(tokens), seconds


def show(
    title: str, text: str, tokens: int, seconds: dict[str, float], peaks: dict[str, int]
) -> None:
    print(f"\n{title}")
    print(f"  answer         {text.strip()!r}")
    print(f"  visual tokens  {tokens}")
    print("  seconds        " + ", ".join(f"{name} {s:.3f}" for name, s in seconds.items()))
    print("  peak MiB       " + ", ".join(f"{name} {b / 2**20:.0f}" for name, b in peaks.items()))


if __name__ == "__main__":
    main()
