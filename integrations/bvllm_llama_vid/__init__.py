"""LLaMA-VID as a host of bvllm_adapters: its port, its published checkpoints, its wrapping."""

from bvllm_adapters.hosts.host import Host
from bvllm_llama_vid.configuration import LlavaConfig
from bvllm_llama_vid.modeling import LlavaLlamaAttForCausalLM
from bvllm_llama_vid.preprocessing import LlamaVidProcessor, frame_indices
from bvllm_llama_vid.shim import LlamaVidHost

__all__ = [
    "HOST",
    "LlamaVidProcessor",
    "LlavaConfig",
    "LlavaLlamaAttForCausalLM",
    "frame_indices",
]

HOST: Host = LlamaVidHost()
