"""The Q-Former: learned queries read visual tokens in the light of a text (Li et al., BLIP-2).

Queries and text attend to each other; queries alone cross-attend to the visual tokens, every few
layers; each has feed-forward layers of its own. Frame selector and spatial sampler (paper, 3.2
and 3.4) are each built on one.

Axes: B batch, Q queries, L text tokens, N visual tokens, H width, W visual width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from bvllm_adapters.context import in_float32, noted_maps
from bvllm_adapters.weights.checkpoint import load_strictly
from bvllm_adapters.weights.qformer_names import INSTRUCTBLIP_NAMES, LAVIS_NAMES, renamed

LAYER_NORM_EPS = 1e-12  # BERT's
POSITIONS = 512


class Attention(nn.Module):
    """Multi-head attention with BERT's residual and norm behind it."""

    def __init__(self, width: int, heads: int, source_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width, width)
        self.value = nn.Linear(source_width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, X, H) reads source (B, S, W); mask (B, S), True where it may look."""
        query, key, value = (
            rearrange(t, "b n (h d) -> b h n d", h=self.heads)
            for t in (self.query(x), self.key(source), self.value(source))
        )
        if mask is not None:
            mask = rearrange(mask, "b s -> b 1 1 s")
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out: Tensor = self.norm(x + self.output(rearrange(read, "b h n d -> b n (h d)")))
        return out

    @torch.no_grad()
    def looks(self, x: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        """(B, X, S) float32: how much each of x looks at each of source, the mean over heads."""
        dtype = self.query.weight.dtype
        with in_float32(x):
            query, key = (
                rearrange(part, "b n (h d) -> b h n d", h=self.heads).float()
                for part in (self.query(x.to(dtype)), self.key(source.to(dtype)))
            )
            scores = query @ key.transpose(2, 3) / query.shape[3] ** 0.5
            if mask is not None:
                scores = scores.masked_fill(~rearrange(mask, "b s -> b 1 1 s"), -torch.inf)
            found: Tensor = scores.softmax(dim=3).mean(dim=1)
            return found


class FeedForward(nn.Module):
    def __init__(self, width: int, inner_width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, inner_width)
        self.output = nn.Linear(inner_width, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x + self.output(F.gelu(self.inner(x))))
        return out


class QFormerLayer(nn.Module):
    """One layer; the last has no text half, since nothing reads the text behind it."""

    def __init__(
        self, width: int, heads: int, ffn_width: int, visual_width: int | None, *, last: bool
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads, width)
        self.cross_attention = (
            None if visual_width is None else Attention(width, heads, visual_width)
        )
        self.query_ffn = FeedForward(width, ffn_width)
        self.text_ffn = None if last else FeedForward(width, ffn_width)

    def forward(
        self,
        queries: Tensor,
        text: Tensor | None,
        visual: Tensor,
        mask: Tensor | None,
        visual_mask: Tensor | None,
        counts: Sequence[int] | None = None,
        maps: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The text stays in as many rows as it came; `counts` says how many visual rows each has,
        and queries come back in a row for each of those. Where they looked goes into `maps`."""
        both = queries if text is None else torch.cat([queries, text], dim=1)
        if self.text_ffn is None:
            text = None
        readers = queries if text is None else both
        queries, text = _split(self.attention(readers, both, mask), queries.shape[1])
        if counts is not None:
            queries = repeated(queries, counts)
        if self.cross_attention is not None:
            if maps is not None:
                maps.append(self.cross_attention.looks(queries, visual, visual_mask))
            queries = self.cross_attention(queries, visual, visual_mask)
        queries = self.query_ffn(queries)
        if text is not None and self.text_ffn is not None:
            text = self.text_ffn(text)
        return queries, text


class QFormer(nn.Module):
    """Queries that come back as what they found in the visual tokens, given the text.

    Args:
        width: H. heads: attention heads. layers: how many. ffn_width: inner feed-forward width.
        visual_width: W. cross_attention_frequency: layers 0, f, 2f, ... read the visual tokens.
        vocab_size: of the text's word embedding.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        layers: int,
        ffn_width: int,
        visual_width: int,
        cross_attention_frequency: int,
        vocab_size: int,
        positions: int = POSITIONS,
    ) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, width, padding_idx=0)
        self.position_embeddings = nn.Embedding(positions, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.layers = nn.ModuleList(
            QFormerLayer(
                width,
                heads,
                ffn_width,
                visual_width if i % cross_attention_frequency == 0 else None,
                last=i == layers - 1,
            )
            for i in range(layers)
        )
        self.apply(_init_as_bert)

    def forward(
        self,
        queries: Tensor,
        visual: Tensor,
        text_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        visual_mask: Tensor | None = None,
        counts: Sequence[int] | None = None,
    ) -> Tensor:
        """Read `visual` with `queries`, conditioned on the text.

        Args:
            queries: (B, Q, H). visual: (B, N, W).
            text_ids: (B, L) int64 WordPiece ids, L up to 512; None or L = 0: no text.
            text_mask: (B, L), non-zero where there is text; None: everywhere.
            visual_mask: (B, N), non-zero where there is a visual token; None: everywhere.
            counts: where one text is read with many visual rows, as one question with all frames of
                a video: queries and text have a row for each text, this says how many visual rows,
                one behind the other, belong to each. What comes before the first look at them is
                then computed once a text.

        Returns:
            (B, Q, H); no attention map is kept, but those that `attention_maps` asks for.
        """
        self._check(queries, visual, text_ids, text_mask, visual_mask, counts)
        text = None
        if text_ids is not None and text_ids.shape[1] > 0:
            places = torch.arange(text_ids.shape[1], device=text_ids.device)
            text = self.norm(self.word_embeddings(text_ids) + self.position_embeddings(places))
        queries = self.norm(queries)

        mask = None
        if text is not None and text_mask is not None:
            mask = torch.cat([text_mask.new_ones(queries.shape[:2]), text_mask], dim=1).bool()
        if visual_mask is not None:
            visual_mask = visual_mask.bool()
        maps = noted_maps()
        for layer in self.layers:
            queries, text = layer(queries, text, visual, mask, visual_mask, counts, maps)
            if counts is not None:  # the first layer, behind which texts go with visual rows
                text, mask = (x if x is None else repeated(x, counts) for x in (text, mask))
                counts = None
        return queries

    def _check(
        self,
        queries: Tensor,
        visual: Tensor,
        text_ids: Tensor | None,
        text_mask: Tensor | None,
        visual_mask: Tensor | None,
        counts: Sequence[int] | None,
    ) -> None:
        batch, width = len(queries), self.width
        visual_width = self.visual_width
        if counts is not None and (len(counts) != batch or min(counts, default=0) < 1):
            raise ValueError(f"counts: got {list(counts)}, wanted {batch} of 1 or more as queries")
        looks = batch if counts is None else sum(counts)
        for name, value, wanted, rows, last in (
            ("queries", queries, f"(B, Q, {width})", batch, width),
            ("visual", visual, f"({looks}, N, {visual_width})", looks, visual_width),
        ):
            shape = tuple(value.shape)
            if len(shape) != 3 or shape[0] != rows or shape[2] != last or 0 in shape:
                raise ValueError(f"{name}: got shape {shape}, wanted {wanted}")
        if text_ids is not None:
            most = self.position_embeddings.num_embeddings
            if text_ids.dim() != 2 or len(text_ids) != batch or text_ids.shape[1] > most:
                raise ValueError(
                    f"text_ids: got shape {tuple(text_ids.shape)}, "
                    f"wanted ({batch}, L) with L up to {most}"
                )
        for name, mask, of in (
            ("text_mask", text_mask, text_ids),
            ("visual_mask", visual_mask, visual[..., 0]),
        ):
            if mask is not None and (of is None or mask.shape != of.shape):
                wanted = "none, as there is no text" if of is None else f"{tuple(of.shape)}"
                raise ValueError(f"{name}: got shape {tuple(mask.shape)}, wanted {wanted}")
        if visual_mask is not None and not bool(visual_mask.bool().any(dim=1).all()):
            raise ValueError("visual_mask: got a row that hides everything, wanted a token in each")

    @property
    def width(self) -> int:
        return self.norm.normalized_shape[0]

    @property
    def visual_width(self) -> int:
        cross_attention = self.layers[0].cross_attention
        assert isinstance(cross_attention, Attention)  # layer 0 always reads the visual tokens
        return cross_attention.key.in_features

    @classmethod
    def from_lavis(cls, state_dict: Mapping[str, Tensor], *, heads: int) -> QFormer:
        """Weights as LAVIS, LLaMA-VID and B-VLLM name them (`...bert.embeddings...`).

        Any prefix before `embeddings.` is found and dropped, keys outside it are left alone; all
        sizes but `heads` come from the shapes. Missing or unknown keys: ValueError.
        """
        return cls._from_published(state_dict, heads, LAVIS_NAMES)

    @classmethod
    def from_instructblip(
        cls, source: Mapping[str, Tensor] | nn.Module, *, heads: int | None = None
    ) -> QFormer:
        """Weights as transformers' InstructBlipQFormerModel names them.

        `source` is that model, or a state_dict that holds its weights under any prefix, as that
        of a whole InstructBLIP does. `heads` is read from a model's config, else it is needed.
        """
        if isinstance(source, nn.Module):
            heads = heads if heads is not None else int(source.config.num_attention_heads)  # type: ignore[union-attr, arg-type]
            source = source.state_dict()
        if heads is None:
            raise ValueError("heads: got None, wanted the number of heads with a state_dict")
        return cls._from_published(source, heads, INSTRUCTBLIP_NAMES)

    @classmethod
    def _from_published(
        cls, state_dict: Mapping[str, Tensor], heads: int, names: Mapping[str, str]
    ) -> QFormer:
        weights = renamed(state_dict, names)
        layers = 1 + max(
            (
                int(match[1])
                for match in map(re.compile(r"layers\.(\d+)\.").match, weights)
                if match
            ),
            default=-1,
        )
        reading = [i for i in range(layers) if f"layers.{i}.cross_attention.key.weight" in weights]
        if layers == 0 or reading[:1] != [0]:
            raise ValueError("state_dict: got no layers that read visual tokens, wanted a Q-Former")
        for key in [key for key in weights if key.startswith(f"layers.{layers - 1}.text_ffn.")]:
            del weights[key]  # nothing reads the text behind the last layer
        vocab_size, width = weights["word_embeddings.weight"].shape
        if width % heads:
            raise ValueError(f"heads: got {heads}, wanted a divisor of the width {width}")
        with torch.device("meta"):
            qformer = cls(
                width=width,
                heads=heads,
                layers=layers,
                ffn_width=len(weights["layers.0.query_ffn.inner.weight"]),
                visual_width=weights["layers.0.cross_attention.key.weight"].shape[1],
                cross_attention_frequency=reading[1] if len(reading) > 1 else layers,
                vocab_size=vocab_size,
                positions=len(weights["position_embeddings.weight"]),
            )
        load_strictly(qformer, weights.items(), source="state_dict, in this library's names")
        return qformer


def repeated(x: Tensor, counts: Sequence[int]) -> Tensor:
    """Row i of x counts[i] times, one behind the other.

    By views, whose gradients are sums, which a GPU adds up in one order.
    """
    return torch.cat(
        [row.expand(n, *x.shape[1:]) for row, n in zip(x.split(1), counts, strict=True)]
    )


def _split(x: Tensor, queries: int) -> tuple[Tensor, Tensor | None]:
    return x[:, :queries], x[:, queries:] if x.shape[1] > queries else None


def _init_as_bert(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
