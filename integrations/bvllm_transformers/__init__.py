"""transformers' own video models under a visual-token budget."""

from bvllm_transformers.shim import HOST

__all__ = ["HOST"]
