"""What a question costs, stage by stage, with and without a budget of visual tokens.

`bvllm bench` runs it; `bench` measures a model, `count` only counts what one too large to run does.
"""

from bvllm_adapters.bench.rows import Row

__all__ = ["Row"]
