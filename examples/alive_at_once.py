"""Memory that a run takes at most, followed tensor by tensor; shapes do, nothing is computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Alive(TorchDispatchMode):
    """Inside of it, `most` is the bytes of all tensors made inside that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {memory(part) for part in tensors((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for part in tensors(made):
            if memory(part) not in given | self.known:  # else it is a view
                storage = part.untyped_storage()
                self.known.add(memory(part))
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, memory(part), storage.nbytes())
        self.most = max(self.most, self.now)
        return made

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


class ScorelessAttention(TorchFunctionMode):
    """Inside of it, attention leaves its output alone."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            query, _, value = args[:3]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


def tensors(of: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(of) if isinstance(leaf, Tensor))


def memory(of: Tensor) -> int:
    """The same for all views of one piece of memory."""
    return of.untyped_storage()._cdata


def most_alive(run: Callable[[], object]) -> int:
    """Bytes, while it runs."""
    with torch.no_grad(), ScorelessAttention(), Alive() as alive:
        run()
    return alive.most
