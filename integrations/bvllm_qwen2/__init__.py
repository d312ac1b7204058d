"""The native host of bvllm_adapters: own vision tower, BalancedTokenizer, Qwen2.

Importing it makes the model known to transformers' Auto classes.
"""

from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from bvllm_adapters.hosts.host import Host
from bvllm_qwen2.build import build
from bvllm_qwen2.chat import CHAT_TEMPLATE
from bvllm_qwen2.configuration import BvllmQwen2Config, EvaVisionConfig, TimmVisionConfig
from bvllm_qwen2.modeling import BvllmQwen2ForConditionalGeneration, BvllmQwen2Output
from bvllm_qwen2.processing import BvllmQwen2Processor
from bvllm_qwen2.shim import BvllmQwen2Host

__all__ = [
    "CHAT_TEMPLATE",
    "HOST",
    "BvllmQwen2Config",
    "BvllmQwen2ForConditionalGeneration",
    "BvllmQwen2Output",
    "BvllmQwen2Processor",
    "EvaVisionConfig",
    "TimmVisionConfig",
    "build",
]

HOST: Host = BvllmQwen2Host()

AutoConfig.register(EvaVisionConfig.model_type, EvaVisionConfig, exist_ok=True)
AutoConfig.register(TimmVisionConfig.model_type, TimmVisionConfig, exist_ok=True)
AutoConfig.register(BvllmQwen2Config.model_type, BvllmQwen2Config, exist_ok=True)
AutoProcessor.register(BvllmQwen2Config, BvllmQwen2Processor, exist_ok=True)
for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto.register(BvllmQwen2Config, BvllmQwen2ForConditionalGeneration, exist_ok=True)
