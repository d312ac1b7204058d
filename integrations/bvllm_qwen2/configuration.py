"""What a BvllmQwen2 model is built from: a vision tower, a BalancedTokenizer, a Qwen2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    PreTrainedConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from bvllm_adapters.checks import check_count
from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_adapters.hosts.language_model import CACHE_NAMES

QWEN2_7B: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "eos_token_id": 151645,
}


class EvaVisionConfig(PreTrainedConfig):
    """EVA-CLIP's ViT, up to the output of its last block; the defaults are EVA-CLIP-g at 224.

    Args:
        image_size, patch_size: pixels. hidden_size: features per token.
        num_hidden_layers, num_attention_heads, intermediate_size: of its blocks. The g has 39
            blocks here: BLIP-2 and its descendants leave out the 40th.
    """

    model_type = "bvllm_eva_vision"
    base_config_key = "vision_config"

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 14,
        hidden_size: int = 1408,
        num_hidden_layers: int = 39,
        num_attention_heads: int = 16,
        intermediate_size: int = 6144,
        **kwargs: Any,
    ) -> None:
        self.image_size = image_size
        self.patch_size = patch_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        super().__init__(**kwargs)


class TimmVisionConfig(PreTrainedConfig):
    """Any image model of timm, behind its last block and norm.

    Args:
        architecture: timm's name of it. model_args: of timm.create_model, such as depth=4; most
            transformers need img_size= there if image_size is not the architecture's own.
        image_size: pixels. hidden_size: features per token, which must be what the model gives.
        has_cls: whether its first token stands for the whole image. Further tokens before the
            patches, as registers, are left out.
        earlier: of a model with feature maps the stages, from 0, whose maps are put beside the
            last, each averaged to its grid and normalised over its channels: what deep layers
            forget, as colour. hidden_size counts their channels, too.
    """

    model_type = "bvllm_timm_vision"
    base_config_key = "vision_config"

    def __init__(
        self,
        architecture: str = "vit_base_patch16_224",
        image_size: int = 224,
        hidden_size: int = 768,
        has_cls: bool = True,
        model_args: Mapping[str, Any] | None = None,
        earlier: Sequence[int] = (),
        **kwargs: Any,
    ) -> None:
        self.architecture = architecture
        self.image_size = image_size
        self.hidden_size = hidden_size
        self.has_cls = has_cls
        self.model_args = dict(model_args or {})
        self.earlier = list(earlier)
        super().__init__(**kwargs)


VisionConfig = EvaVisionConfig | CLIPVisionConfig | SiglipVisionConfig | TimmVisionConfig
TOWERS: dict[str, type[VisionConfig]] = {
    config.model_type: config
    for config in (EvaVisionConfig, CLIPVisionConfig, SiglipVisionConfig, TimmVisionConfig)
}


class BvllmQwen2Config(PreTrainedConfig):
    """Sizes and settings of `BvllmQwen2ForConditionalGeneration`; the defaults are the paper's.

    Args:
        text_config: of the language model; None: Qwen2-7B.
        vision_config: of the tower: EVA, CLIP, SigLIP or one of timm's; None: EVA-CLIP-g at 224.
        balanced_tokenizer: fields of a `BalancedTokenizerConfig`. vision_width and llm_width are
            filled in from tower and language model, frame_feature is "mean" for a tower without
            CLS token; the rest are that class's defaults.
        vision_select_layer: which hidden states of a CLIP or SigLIP tower are read, 0 the
            embeddings; None: the last but one. EVA and timm's are read behind the last block.
        vision_chunk_size: frames that the tower sees at a time.
        image_token_id, video_token_id: placeholders; they need no row in the word embedding.
        initializer_range: standard deviation of the BalancedTokenizer's first weights.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was wanted.
    """

    model_type = "bvllm_qwen2"
    sub_configs = {"text_config": Qwen2Config, "vision_config": AutoConfig}  # noqa: RUF012
    keys_to_ignore_at_inference = [  # noqa: RUF012
        *CACHE_NAMES,
        "attention_mask",
        "visual_tokens",
        "labels",
    ]

    def __init__(
        self,
        text_config: Qwen2Config | Mapping[str, Any] | None = None,
        vision_config: VisionConfig | Mapping[str, Any] | None = None,
        balanced_tokenizer: BalancedTokenizerConfig | Mapping[str, Any] | None = None,
        vision_select_layer: int | None = None,
        vision_chunk_size: int = 16,
        image_token_id: int = 151646,
        video_token_id: int = 151647,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        self.text_config = _text_config(text_config)
        self.vision_config = _vision_config(vision_config)
        self.vision_chunk_size = check_count("vision_chunk_size", vision_chunk_size)
        self.vision_select_layer = _select_layer(vision_select_layer, self.vision_config)
        self.image_token_id = check_count("image_token_id", image_token_id, least=0)
        self.video_token_id = check_count("video_token_id", video_token_id, least=0)
        if image_token_id == video_token_id:
            raise ValueError(
                f"video_token_id: got {video_token_id}, wanted another than image_token_id"
            )
        self.initializer_range = initializer_range
        self.balanced_tokenizer = _complete(
            balanced_tokenizer, self.vision_config, self.text_config
        ).to_dict()
        super().__init__(**kwargs)

    @property
    def image_size(self) -> int:
        """Of the square frames that the tower sees, in pixels."""
        size = self.vision_config.image_size
        assert isinstance(size, int)  # checked when made
        return size

    @property
    def balanced_tokenizer_config(self) -> BalancedTokenizerConfig:
        return BalancedTokenizerConfig.from_dict(self.balanced_tokenizer)


def has_cls(config: VisionConfig) -> bool:
    """Whether the tower puts a CLS token before the patches."""
    if isinstance(config, TimmVisionConfig):
        return config.has_cls
    return not isinstance(config, SiglipVisionConfig)


def _text_config(given: Qwen2Config | Mapping[str, Any] | None) -> Qwen2Config:
    if given is None:
        return Qwen2Config(**QWEN2_7B)
    if isinstance(given, Mapping):
        kind = given.get("model_type", "qwen2")
        if kind == "qwen2":
            return Qwen2Config(**given)
    elif isinstance(given, Qwen2Config):
        return given
    else:
        kind = getattr(given, "model_type", type(given).__name__)
    raise ValueError(f"text_config: got {kind!r}, wanted 'qwen2'")


def _vision_config(given: VisionConfig | Mapping[str, Any] | None) -> VisionConfig:
    kind: object
    if given is None:
        return EvaVisionConfig()
    if isinstance(given, Mapping):
        kind = given.get("model_type", EvaVisionConfig.model_type)
        config = TOWERS[kind](**given) if kind in TOWERS else None
    else:
        kind = getattr(given, "model_type", type(given).__name__)
        config = given if isinstance(given, tuple(TOWERS.values())) else None
    if config is None:
        raise ValueError(f"vision_config: got {kind!r}, wanted one of {sorted(TOWERS)}")
    for name in ("image_size", "patch_size"):
        if not (name == "patch_size" and isinstance(config, TimmVisionConfig)):
            check_count(f"vision_config.{name}", getattr(config, name))
    if isinstance(config, EvaVisionConfig) and config.image_size % config.patch_size:
        raise ValueError(
            f"vision_config.image_size: got {config.image_size}, "
            f"wanted a multiple of patch_size={config.patch_size}"
        )
    return config


def _select_layer(given: int | None, tower: VisionConfig) -> int | None:
    if isinstance(tower, EvaVisionConfig | TimmVisionConfig):
        if given is not None:
            raise ValueError(
                f"vision_select_layer: got {given}, wanted None, "
                f"as a {tower.model_type} is read behind its last block"
            )
        return None
    layer = -2 if given is None else given
    states = tower.num_hidden_layers + 1
    if not -states <= layer < states:
        raise ValueError(
            f"vision_select_layer: got {layer}, wanted {-states} to {states - 1}, "
            f"as the tower has {tower.num_hidden_layers} layers"
        )
    return layer


def _complete(
    given: BalancedTokenizerConfig | Mapping[str, Any] | None,
    tower: VisionConfig,
    llm: Qwen2Config,
) -> BalancedTokenizerConfig:
    """The tokenizer's settings, with what tower and language model say filled in."""
    widths = {"vision_width": tower.hidden_size, "llm_width": llm.hidden_size}
    if isinstance(given, BalancedTokenizerConfig):
        config = given
    else:
        feature = {} if has_cls(tower) else {"frame_feature": "mean"}
        config = BalancedTokenizerConfig.from_dict({**widths, **feature, **(given or {})})
    for name, wanted in widths.items():
        if getattr(config, name) != wanted:
            raise ValueError(
                f"balanced_tokenizer.{name}: got {getattr(config, name)}, "
                f"wanted {wanted} as the model's"
            )
    if config.frame_feature == "cls" and not has_cls(tower):
        raise ValueError(
            "balanced_tokenizer.frame_feature: got 'cls', wanted 'mean' or 'max', "
            f"as a {tower.model_type} has no CLS token"
        )
    return config
