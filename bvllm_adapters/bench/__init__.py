"""What an answer costs, stage by stage, with a budget of visual tokens and without.

`bvllm bench` runs it: `bench` measures a model, `count` only counts what one too large to run does.
It may import conversation and what is below it, and of evaluation the needle task's clip.
"""

from bvllm_adapters.bench.measure import bench, count
from bvllm_adapters.bench.rows import Row

__all__ = ["Row", "bench", "count"]
