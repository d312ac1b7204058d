"""One of two processes that train a wrapped model together, see test_transformers_training.py."""

from __future__ import annotations

import datetime
import sys

import torch
from asked import wrapped
from test_transformers_training import QUESTIONS, example
from torch import distributed
from torch.nn.parallel import DistributedDataParallel


def main(name: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=100))
    model = wrapped(name, max_tokens=7).train()
    for key, parameter in model.named_parameters():
        parameter.requires_grad_("language_model" in key)
    together = DistributedDataParallel(model, find_unused_parameters=False)
    mine = example(name, QUESTIONS[distributed.get_rank()])
    for _ in range(2):
        together(**mine).loss.backward()
    sums = torch.stack([p.grad.abs().sum() for p in model.parameters() if p.grad is not None])
    everyones = [torch.empty_like(sums) for _ in range(2)]
    distributed.all_gather(everyones, sums)
    assert torch.equal(*everyones) and bool(sums.any())
    print("same gradients")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
