"""VideoLLaMA2 as a host of bvllm_adapters.

Importing it is cheap: transformers, timm and the models are imported when they are first used.
The model classes are in `bvllm_videollama2.modeling`.
"""

from bvllm_adapters.hosts.host import Host
from bvllm_videollama2.shim import Videollama2Host

__all__ = ["HOST"]

HOST: Host = Videollama2Host()
