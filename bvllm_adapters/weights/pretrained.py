"""How a BalancedTokenizer is saved and read: settings as JSON, weights as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
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
        apart = self.parts_apart()
        weights = {
            name: value
            for name, value in plain_weights(module, "balanced_tokenizer").items()
            if name.partition(".")[0] not in apart
        }
        for name, part in apart.values():
            part.save_pretrained(folder / name)
        write_json(folder / CONFIG_FILE, self.config.to_dict(), stamp)
        write_weights(folder / WEIGHTS_FILE, weights, stamp)

    def parts_apart(self) -> dict[str, tuple[str, Any]]:
        """Stages whose weights lie in folders of their own: the folder's name, and what writes its
        files."""
        return {}

    @classmethod
    def stages_apart(cls, folder: Path, config: BalancedTokenizerConfig) -> dict[str, nn.Module]:
        """These stages, read from their folders in this one."""
        return {}

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
        values = read_settings(settings, weights, needed=needed, unused=unused_sizes)
        with blamed(settings):
            config = BalancedTokenizerConfig.from_dict(values)
            apart = {} if "frame_selector" in stages else cls.stages_apart(folder, config)
            make: Any = cls
            own = {**stages, **dict.fromkeys(apart)}
            tokenizer: Any = without_weights(lambda: make(config, **own))
        load_strictly(tokenizer, read_tensors([weights]), source=str(weights))
        for name, stage in apart.items():
            setattr(tokenizer, name, stage)
        built: Built = tokenizer.eval()
        return built

    def push_to_hub(self, repo_id: str, *, private: bool | None = None) -> str:
        """Upload what `save_pretrained` writes; returns the address."""
        return upload(self.save_pretrained, repo_id, private=private)


def unused_sizes(values: Mapping[str, Any]) -> set[str]:
    """Settings of stages that a tokenizer of these settings has not, so that no weights tell them:
    a selector without training chooses any number of frames."""
    learned = values.get("selector", "learned") == "learned"
    sampled = values.get("sampler", "qformer") != "none"
    projected = values.get("projection", "mlp") != "none"
    names = {
        "num_frames": learned,
        "tokens_per_frame": sampled,
        "vision_width": learned or sampled or projected,
        "llm_width": projected,
        **{
            name: learned or sampled
            for name in values
            if name.startswith("qformer_") or name == "vocab_size"
        },
    }
    return {name for name, used in names.items() if not used}
