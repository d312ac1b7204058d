"""Mixtral's experts: published one by one, in transformers 5 all of a layer in one tensor."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from bvllm_adapters.weights.checkpoint import CheckpointError, Named

_EXPERT = re.compile(r"(.*)\.block_sparse_moe\.experts\.(\d+)\.(w[123])\.weight")


def together(tensors: Named) -> Iterator[tuple[str, Tensor]]:
    """Published names and tensors -> live ones; those of other models pass through.

    A layer's experts are in memory twice while they are joined, no more.
    """
    waiting: dict[str, dict[tuple[int, str], Tensor]] = defaultdict(dict)
    for key, tensor in tensors:
        match = _EXPERT.fullmatch(key)
        if match is None:
            yield key.replace(".block_sparse_moe.gate.", ".mlp.gate."), tensor
        else:
            waiting[match[1]][int(match[2]), match[3]] = tensor
    for layer in list(waiting):
        parts = waiting.pop(layer)
        count = 1 + max(number for number, _ in parts)
        missing = [
            f"{layer}.block_sparse_moe.experts.{n}.{w}.weight"
            for n in range(count)
            for w in ("w1", "w2", "w3")
            if (n, w) not in parts
        ]
        if missing:
            raise CheckpointError(f"missing {missing}")
        try:
            gate_up = torch.stack(
                [torch.cat([parts[n, "w1"], parts[n, "w3"]]) for n in range(count)]
            )
            down = torch.stack([parts[n, "w2"] for n in range(count)])
        except RuntimeError as error:
            raise CheckpointError(
                f"{layer}.block_sparse_moe.experts: of unequal shapes ({error})"
            ) from error
        yield f"{layer}.mlp.experts.gate_up_proj", gate_up
        yield f"{layer}.mlp.experts.down_proj", down


def apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `together`: live names and tensors -> published ones."""
    published = {}
    for key, tensor in state.items():
        layer, found, which = key.partition(".mlp.experts.")
        if found:
            for n, expert in enumerate(tensor):
                prefix = f"{layer}.block_sparse_moe.experts.{n}"
                if which == "down_proj":
                    published[f"{prefix}.w2.weight"] = expert.clone()
                else:
                    gate, up = expert.chunk(2)
                    published |= {
                        f"{prefix}.w1.weight": gate.clone(),
                        f"{prefix}.w3.weight": up.clone(),
                    }
        else:
            published[key.replace(".mlp.gate.", ".block_sparse_moe.gate.")] = tensor
    return published
