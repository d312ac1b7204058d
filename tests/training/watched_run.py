"""One process of a distributed run: trains by a config file, and keeps what it saw.

torchrun --nproc-per-node 2 watched_run.py CONFIG.yaml SEEN.pt
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from runs import Watch

from bvllm_adapters.training.config import TrainingConfig
from bvllm_adapters.training.run import train


class About(Watch):
    """And on what the steps really ran."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = kwargs["optimizer"]
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper around it
        self.about = {"devices": args.world_size, "optimizer": type(optimizer).__name__}
        if hasattr(optimizer, "partition_gradients"):
            shards = optimizer.single_partition_of_fp32_groups
            moments = [tensor for s in optimizer.state.values() for tensor in s.values()]
            self.about |= {
                "gradients are sharded": optimizer.partition_gradients,
                "weights here": sum(shard.numel() for shard in shards),
                "most of a moment here": max(t.numel() for t in moments if torch.is_tensor(t)),
            }


def main(config: str, seen: str) -> None:
    torch.set_num_threads(1)
    watch = About()
    resume = bool(os.environ.get("RESUME"))
    model = train(TrainingConfig.load(config), resume=resume, callbacks=[watch])
    rank = torch.distributed.get_rank()
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    torch.save(
        {
            "losses": watch.losses,
            "gradients": watch.gradients,
            "weights": weights,
            "about": watch.about,
        },
        f"{seen}.{rank}",
    )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
