"""A visual-token budget for video LLMs: balanced spatio-temporal tokens (B-VLLM) as a plug-in.

Names are loaded when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bvllm_adapters.balanced_tokenizer import BalancedTokenizer as BalancedTokenizer
    from bvllm_adapters.budget_merger import BudgetMerger as BudgetMerger
    from bvllm_adapters.bulk.answers import batch as batch
    from bvllm_adapters.bulk.chosen import select_batch as select_batch
    from bvllm_adapters.config import BalancedTokenizerConfig as BalancedTokenizerConfig
    from bvllm_adapters.config import ScoutConfig as ScoutConfig
    from bvllm_adapters.config import plan as plan
    from bvllm_adapters.conversation import Answer as Answer
    from bvllm_adapters.conversation import OpenVideo as OpenVideo
    from bvllm_adapters.conversation import ask as ask
    from bvllm_adapters.conversation import ask_batch as ask_batch
    from bvllm_adapters.conversation import load_video as load_video
    from bvllm_adapters.conversation import open_video as open_video
    from bvllm_adapters.features import FrameFeatures as FrameFeatures
    from bvllm_adapters.features import Selection as Selection
    from bvllm_adapters.features import VisualTokens as VisualTokens
    from bvllm_adapters.frame_selector import FrameSelector as FrameSelector
    from bvllm_adapters.hosts.adapter import push_adapter as push_adapter
    from bvllm_adapters.hosts.adapter import save_adapter as save_adapter
    from bvllm_adapters.hosts.find import list_hosts as list_hosts
    from bvllm_adapters.hosts.host import HostError as HostError
    from bvllm_adapters.hosts.load import load as load
    from bvllm_adapters.hosts.wrap import merge_lora as merge_lora
    from bvllm_adapters.hosts.wrap import unwrap as unwrap
    from bvllm_adapters.hosts.wrap import wrap as wrap
    from bvllm_adapters.qformer import QFormer as QFormer
    from bvllm_adapters.seeing.encoding import Encoding as Encoding
    from bvllm_adapters.selectors.coverage import CoverageSelector as CoverageSelector
    from bvllm_adapters.selectors.frames_of import select_frames as select_frames
    from bvllm_adapters.selectors.relevance import RelevanceSelector as RelevanceSelector
    from bvllm_adapters.spatial_sampler import SpatialSampler as SpatialSampler
    from bvllm_adapters.tables.results import read_results as read_results
    from bvllm_adapters.temporal_merger import TemporalMerger as TemporalMerger
    from bvllm_adapters.trace import Trace as Trace
    from bvllm_adapters.video.read import Video as Video
    from bvllm_adapters.video.read import VideoError as VideoError
    from bvllm_adapters.video.read import read_video as read_video


__version__ = "0.1.0"

# In pipeline order: where each public name lives.
_HOMES = {
    "BalancedTokenizerConfig": "config",
    "ScoutConfig": "config",
    "read_video": "video.read",
    "Video": "video.read",
    "VideoError": "video.frames",
    "FrameFeatures": "features",
    "Selection": "features",
    "VisualTokens": "features",
    "QFormer": "qformer",
    "FrameSelector": "frame_selector",
    "CoverageSelector": "selectors.coverage",
    "RelevanceSelector": "selectors.relevance",
    "select_frames": "selectors.frames_of",
    "TemporalMerger": "temporal_merger",
    "SpatialSampler": "spatial_sampler",
    "BudgetMerger": "budget_merger",
    "BalancedTokenizer": "balanced_tokenizer",
    "plan": "config",
    "list_hosts": "hosts.find",
    "load": "hosts.load",
    "wrap": "hosts.wrap",
    "unwrap": "hosts.wrap",
    "merge_lora": "hosts.wrap",
    "save_adapter": "hosts.adapter",
    "push_adapter": "hosts.adapter",
    "HostError": "hosts.host",
    "Encoding": "seeing.encoding",
    "ask": "conversation",
    "open_video": "conversation",
    "load_video": "conversation",
    "OpenVideo": "conversation",
    "ask_batch": "conversation",
    "batch": "bulk.answers",
    "select_batch": "bulk.chosen",
    "read_results": "tables.results",
    "Answer": "conversation",
    "Trace": "trace",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
