"""Published EVA-CLIP weights (eva_vit_g.pth) for the tower."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bvllm_adapters.weights.checkpoint import load_strictly, read_pickle
from bvllm_adapters.weights.eva import eva_name, resized_positions
from bvllm_qwen2.configuration import EvaVisionConfig
from bvllm_qwen2.vision_tower import build_eva_tower

log = logging.getLogger("bvllm_adapters")

# timm names its modules as the published file does, so the mapping is: the same name behind the
# prefix. The file's anchor, by which the prefix (often none) is found:
_ANCHOR = "patch_embed.proj.weight"


def read_state_dict(file: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a torch file without running any code of it."""
    file = Path(file)
    return load_file(file) if file.suffix == ".safetensors" else read_pickle(file)


def load_eva(file: str | Path, config: EvaVisionConfig) -> nn.Module:
    """An EVA encoder with published weights, in the file's dtype.

    Position embeddings of another image size are interpolated.

    Raises:
        CheckpointError: listing what is missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        eva = build_eva_tower(config)
    state_dict = read_state_dict(file)
    prefixes = [name.removesuffix(_ANCHOR) for name in state_dict if name.endswith(_ANCHOR)]
    if len(prefixes) != 1:
        raise ValueError(f"{file}: got {len(prefixes)} keys '...{_ANCHOR}', wanted one EVA")
    positions = f"{prefixes[0]}pos_embed"
    if positions in state_dict:
        count = eva.get_parameter("pos_embed").shape[1]
        state_dict[positions] = resized_positions(state_dict[positions], count)

    def ours(name: str) -> str | None:
        if not name.startswith(prefixes[0]):
            return None
        return eva_name(name.removeprefix(prefixes[0]), config.num_hidden_layers)

    report = load_strictly(eva, state_dict.items(), rename=ours, source=str(file))
    log.info("%s: left out %s", file, sorted(report.ignored))
    for name, buffer in list(eva.named_buffers()):  # the keys' bias, always zero
        owner, _, attribute = name.rpartition(".")
        zeros = torch.zeros(buffer.shape, dtype=state_dict[f"{prefixes[0]}cls_token"].dtype)
        eva.get_submodule(owner).register_buffer(attribute, zeros, persistent=False)
    return eva
