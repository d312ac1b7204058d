"""How a BalancedTokenizer is saved and read: settings as JSON, weights as safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_adapters.weights.checkpoint import load_strictly, read_tensors
from bvllm_adapters.weights.empty import without_weights
from bvllm_adapters.weights.hub import local_folder, upload
from bvllm_adapters.weights.json_file import blamed
from bvllm_adapters.weights.stamped import (
    new_stamp,
    plain_weights,
    read_settings,
    write_json,
    write_weights,
)
from bvllm_adapters.weights.whole import saved_whole

CONFIG_FILE = "balanced_tokenizer.json"
WEIGHTS_FILE = "balanced_tokenizer.safetensors"
ADDED = {"selector", "selector_settings", "sampler"}  # older files are whole without them
Built = TypeVar("Built", bound="Pretrained")


class Pretrained:
    """Mixin of a module that is built from its `config`."""

    config: BalancedTokenizerConfig

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the config as JSON and the weights as safetensors; the folder is made.

        Both are there whole in the end, or the old ones still are.

        Raises:
            ValueError: for packed weights, or with peft's layers in the tokenizer.
        """
        with saved_whole(folder) as new:
            self.write_into(new, new_stamp())

    def write_into(self, folder: Path, stamp: str) -> None:
        """The files of `save_pretrained`, as a part of the save that `stamp` names."""
        module: Any = self
        weights = plain_weights(module, "balanced_tokenizer")
        write_json(folder / CONFIG_FILE, self.config.to_dict(), stamp)
        write_weights(folder / WEIGHTS_FILE, weights, stamp)

    @classmethod
    def from_pretrained(
        cls: type[Built],
        source: str | Path,
        *,
        revision: str | None = None,
        **stages: nn.Module | None,
    ) -> Built:
        """Read what `save_pretrained` wrote, from a folder or a hub id; eval mode, saved dtype.

        Stages that were not built from the config must be given again. Settings that cannot be
        read or are none, and weights that are missing, unexpected or of another shape are a
        CheckpointError that lists them.

        Args:
            revision: branch, tag or commit of a hub id.
        """
        folder = local_folder(source, CONFIG_FILE, revision)
        settings, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
        needed = BalancedTokenizerConfig().to_dict().keys() - ADDED
        values = read_settings(settings, weights, needed=needed)
        with blamed(settings):
            config = BalancedTokenizerConfig.from_dict(values)
            make: Any = cls
            tokenizer: Any = without_weights(lambda: make(config, **stages))
        load_strictly(tokenizer, read_tensors([weights]), source=str(weights))
        built: Built = tokenizer.eval()
        return built

    def push_to_hub(self, repo_id: str, *, private: bool | None = None) -> str:
        """Upload what `save_pretrained` writes; returns the address."""
        return upload(self.save_pretrained, repo_id, private=private)
