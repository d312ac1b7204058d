"""Where a module runs, which is not always where its weights are."""

from __future__ import annotations

import torch
from torch import nn


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's first weight, or the one that it is brought to when it is used.

    Weights that accelerate has offloaded are on no device ("meta"); its hook on the module that
    holds them knows where they run. A module without weights is the CPU's.
    """
    for part in module.modules():
        for weight in part.parameters(recurse=False):
            device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
            return weight.device if device is None else torch.device(device)
    return torch.device("cpu")
