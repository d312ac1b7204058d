"""How bvllm_adapters handles these models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_adapters.features import FrameFeatures, VisualTokens
from bvllm_adapters.video import Video
from bvllm_qwen2.chat import VIDEO_TOKEN, without_placeholders
from bvllm_qwen2.modeling import BvllmQwen2ForConditionalGeneration
from bvllm_qwen2.processing import BvllmQwen2Processor

DEMO = Path(__file__).parent / "demo"

if TYPE_CHECKING:
    from bvllm_qwen2.training import BvllmQwen2Training


class Unchanged:
    """Modifications: none; the model has a tokenizer of its own, which wrap() replaces."""


class BvllmQwen2Host:
    """The host of `BvllmQwen2ForConditionalGeneration`; see `bvllm_adapters.hosts.Host`."""

    api = 1
    overrides: type = Unchanged

    def load(
        self, folder: Path, *, dtype: torch.dtype, **options: Any
    ) -> BvllmQwen2ForConditionalGeneration:
        """A folder that save_pretrained filled; `options` go to from_pretrained."""
        model, about = BvllmQwen2ForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, local_files_only=True, **options
        )
        wrong = {
            kind: sorted(map(str, about[kind]))
            for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
            if about.get(kind)
        }
        if wrong:
            raise ValueError(f"{folder}: the checkpoint does not fit its config: {wrong}")
        loaded: BvllmQwen2ForConditionalGeneration = model
        return loaded

    def demo(self) -> tuple[BvllmQwen2ForConditionalGeneration, BvllmQwen2Processor]:
        """The small trained model that ships; see its card in demo/README.md."""
        return self.load(DEMO, dtype=torch.float32), self.processor(DEMO)

    def processor(self, folder: Path) -> BvllmQwen2Processor:
        processor: BvllmQwen2Processor = BvllmQwen2Processor.from_pretrained(
            folder, local_files_only=True
        )
        return processor

    def training(self, processor: BvllmQwen2Processor) -> BvllmQwen2Training:
        """See `bvllm_adapters.training.host.HostTraining`."""
        from bvllm_qwen2.training import BvllmQwen2Training

        return BvllmQwen2Training(processor)

    def config(self, model: BvllmQwen2ForConditionalGeneration) -> BalancedTokenizerConfig:
        return model.config.balanced_tokenizer_config

    def encode(
        self,
        model: BvllmQwen2ForConditionalGeneration,
        processor: BvllmQwen2Processor,
        video: Video,
    ) -> FrameFeatures:
        def read(indices: torch.Tensor) -> torch.Tensor:
            return processor.pixels(video.frames[indices.numpy()])

        return model.encode(read, torch.from_numpy(video.seconds))

    def answer(
        self,
        model: BvllmQwen2ForConditionalGeneration,
        processor: BvllmQwen2Processor,
        question: str,
        tokens: VisualTokens,
        **generate: Any,
    ) -> str:
        """128 new tokens at most, unless told otherwise."""
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": f"{VIDEO_TOKEN}\n{without_placeholders(question)}"}],
            add_generation_prompt=True,
        )
        ids = processor.tokenizer(prompt, return_tensors="pt")["input_ids"].to(model.device)
        if "max_length" not in generate:
            generate.setdefault("max_new_tokens", 128)
        new = model.continue_prompts(model.splice(ids, [tokens], padding_side="left"), **generate)
        text: str = processor.tokenizer.decode(new[0], skip_special_tokens=True)
        return text.strip()
