"""One of two processes that train together: one has a video, the other what it is told.

torchrun --nproc-per-node 2 rows_without_video.py HOST FOLDER words|image|dummy
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import bvllm_adapters as bvllm
from bvllm_adapters.context import asking


def inputs(host: str, kind: str) -> dict[str, Any]:
    """A prompt of five ids about a video, an image or nothing, as the host's forward() takes it."""
    torch.manual_seed(0)
    frames = {"video": 4, "image": 1, "dummy": 1, "words": 0}[kind]
    ids = torch.tensor([[5, 6, 7, 20, 21]])
    size = {"bvllm_qwen2": 28, "bvllm_videollama2": 56, "bvllm_llama_vid": 28}[host]
    pixels = torch.randn(frames, 3, size, size)
    batch: dict[str, Any] = {"labels": ids.clone()}
    if host == "bvllm_qwen2":
        from bvllm_qwen2.tiny import tiny_model

        made, processor = tiny_model()
        pixels = torch.randn(frames, 3, made.image_size, made.image_size)
        if kind in ("video", "image"):
            ids[0, 2] = getattr(processor, f"{kind}_token_id")
            batch |= {"pixel_values": pixels, "frame_counts": torch.tensor([frames])}
            batch |= {"question_ids": torch.tensor([[101, 102]])}
    else:
        from bvllm_llama_vid.configuration import IMAGE_TOKEN_ID
        from bvllm_videollama2.inputs import IMAGE, VIDEO

        placeholder = {"video": VIDEO, "image": IMAGE}
        if host == "bvllm_llama_vid":
            placeholder = dict.fromkeys(placeholder, IMAGE_TOKEN_ID)
        ids[0, 2] = placeholder.get(kind, 7)
        if frames:
            pair = (pixels, "image" if kind == "dummy" else kind)
            batch["images"] = [pair if host == "bvllm_videollama2" else pixels]
    batch["labels"][:, :3] = -100
    return batch | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def main(host: str, folder: str, kind: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=100))
    torch.manual_seed(0)
    model: Any = bvllm.wrap(bvllm.load(Path(folder)), max_tokens=12).train()
    model.requires_grad_(False)
    model.balanced_tokenizer.requires_grad_(True)
    model.get_output_embeddings().requires_grad_(True)
    together = DistributedDataParallel(model, find_unused_parameters=False)
    mine = inputs(host, "video" if distributed.get_rank() == 0 else kind)
    for _ in range(2):
        with asking("What?"):
            together(**mine).loss.backward()
    gradients = [p.grad for p in model.balanced_tokenizer.parameters()]
    assert all(gradient is not None for gradient in gradients)
    sums = torch.stack([g.abs().sum() for g in gradients if g is not None])
    everyones = [torch.empty_like(sums) for _ in range(2)]
    distributed.all_gather(everyones, sums)
    assert torch.equal(*everyones) and bool(sums.any())
    print("same gradients")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
