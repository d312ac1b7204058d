"""What reads the question and a frame together: upstream's Q-Former, or BERT, by published names.

Axes: F frames times prompts, Q queries, L text tokens, N tokens of a frame, H width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from bvllm_adapters.qformer import Attention, FeedForward, QFormer
from bvllm_adapters.weights.qformer_names import LAVIS_NAMES
from bvllm_llama_vid.configuration import QFormerSizes


class TextEncoder(nn.Module):
    """The level `vlm_att_encoder.bert` of published names."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert


class UpstreamOrderAttention(Attention):
    """The core's attention, its sums in upstream's order.

    What the queries become is compared with patches of large values in a softmax, which makes
    5e-6 in a query 2e-4 in a token: published numbers are met only if rounding is the same.
    """

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (
            t.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for t in (self.query(x), self.key(source), self.value(source))
        )
        scores = query @ key.transpose(2, 3) / query.shape[3] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        read = scores.softmax(dim=3) @ value
        out: Tensor = self.norm(x + self.output(read.transpose(1, 2).flatten(2)))
        return out


class PublishedQFormer(nn.Module):
    """The core's QFormer, its modules under the names they are published with.

    Each module is registered here and nowhere else, so keys, devices, dtypes and freezing go by
    published names; the QFormer itself only borrows them, which is why it is kept out of this
    module's books. Two published things have no use in it, and are held so that what is saved is
    what was loaded: the text half of the last layer's feed-forward, which nothing reads behind,
    and `position_ids`, a range.
    """

    def __init__(self, sizes: QFormerSizes) -> None:
        super().__init__()
        qformer = QFormer(
            width=sizes.hidden_size,
            heads=sizes.num_attention_heads,
            layers=sizes.num_hidden_layers,
            ffn_width=sizes.intermediate_size,
            visual_width=sizes.encoder_width,
            cross_attention_frequency=sizes.cross_attention_freq,
            vocab_size=sizes.vocab_size,
            positions=sizes.max_position_embeddings,
        )
        width = sizes.hidden_size
        for layer in qformer.layers:
            layer.attention = UpstreamOrderAttention(width, sizes.num_attention_heads, width)
            if layer.cross_attention is not None:
                layer.cross_attention = UpstreamOrderAttention(
                    width, sizes.num_attention_heads, sizes.encoder_width
                )
        unread = FeedForward(sizes.hidden_size, sizes.intermediate_size).requires_grad_(False)
        last = f"layers.{sizes.num_hidden_layers - 1}.text_ffn."
        ours = dict(qformer.named_modules()) | {
            last + name: module for name, module in unread.named_modules() if name
        }
        places = {
            published: name
            for published, name in LAVIS_NAMES.items()
            if published.startswith("embeddings.")
        }
        for i in range(sizes.num_hidden_layers):
            for published, name in LAVIS_NAMES.items():
                if (ours_in_layer := f"layers.{i}.{name}") in ours:
                    places[f"encoder.layer.{i}.{published}"] = ours_in_layer
        for published, name in places.items():
            _place(self, published, ours[name])
        positions = torch.arange(sizes.max_position_embeddings)[None]
        self.get_submodule("embeddings").register_buffer("position_ids", positions)
        self.__dict__["qformer"] = qformer
        self.__dict__["places"] = {
            published: name for published, name in places.items() if not name.startswith(last)
        }

    def forward(
        self, query_embeds: Tensor, visual: Tensor, input_ids: Tensor, text_mask: Tensor
    ) -> Tensor:
        """(F, Q, H) queries, (F, N, W) frames, (F, L) text and mask -> (F, Q, H)."""
        qformer = self.__dict__["qformer"]
        for published, name in self.__dict__["places"].items():
            # peft and quantizers replace a module in its published place.
            owner, _, attribute = name.rpartition(".")
            qformer.get_submodule(owner)._modules[attribute] = self.get_submodule(published)
        read: Tensor = qformer(query_embeds, visual, input_ids, text_mask)
        return read


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Register `module` under a dotted path, making the levels between."""
    *levels, name = path.split(".")
    for level in levels:
        if level not in root._modules:
            root.add_module(level, nn.Module())
        root = root.get_submodule(level)
    root.add_module(name, module)


def raw_bert(sizes: QFormerSizes) -> nn.Module:
    """bert_type "raw": BERT as a decoder, each of whose layers reads the frame."""
    config = BertConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.num_hidden_layers,
        num_attention_heads=sizes.num_attention_heads,
        intermediate_size=sizes.intermediate_size,
        max_position_embeddings=sizes.max_position_embeddings,
        is_decoder=True,
        add_cross_attention=True,
    )
    bert: nn.Module = BertModel(config, add_pooling_layer=False)
    return bert
