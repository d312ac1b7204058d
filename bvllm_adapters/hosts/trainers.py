"""What transformers' Trainer, and training on several devices, need of a host's forward().

Axes: B prompts, L ids of the longest, S length after splicing, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

COUNTED = "num_items_in_batch"  # labels of a step, as a Trainer says them to forward()


def for_trainers(
    model: Any,
    output: Any,
    places: Sequence[Tensor],
    labels: Tensor | None,
    kwargs: Mapping[str, Any],
) -> bool:
    """Logits in the output over the ids instead of the spliced prompts, if a Trainer has called.

    A Trainer holds logits beside the labels of the ids, which it does not know to be spliced: to
    smooth them, in a loss of the user's own, in `compute_metrics` and `predict`. It is known by
    saying how many labels a step has. What it finds at a placeholder are the logits of its last
    visual token, which predict the word behind it, so the loss over either is the same. In
    training with labels it wants the loss alone, and a copy of logits would be for nothing.

    Args:
        output: of the language model, with (B, S, V) logits.
        places: what `places_of_ids` watched, (B, L); nothing where nothing was spliced.
        labels, kwargs: of forward().

    Returns:
        Whether a Trainer has called that reads logits.
    """
    if COUNTED not in kwargs or (model.training and labels is not None):
        return False
    _shifts_labels_of(type(model).__name__)
    for at in () if isinstance(output, tuple) else places:
        at = at.to(output.logits.device)
        output.logits = output.logits[torch.arange(len(at), device=at.device)[:, None], at]
    return True


def _shifts_labels_of(name: str) -> None:
    """A Trainer that smooths labels shifts those of models that it knows by name to predict the
    next word; the labels of all others it would smooth beside the wrong logits."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as known

    known.setdefault(name, name)


def beside_all_weights(
    model: Any, input_ids: Tensor | None, embeddings: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Ids or embeddings, whichever came, so that in training each trained weight of the model's
    BalancedTokenizer gets a gradient: of zeros, where a batch has no use for it.

    Words use no tokenizer, and an image no frame selector. But devices that train together wait
    for the gradient of every weight. Values, and torch's generators, stay as they are.

    Returns:
        input_ids and embeddings, of which one is None.
    """
    tokenizer = getattr(model, "balanced_tokenizer", None)
    if tokenizer is None or not model.training or not torch.is_grad_enabled():
        return input_ids, embeddings
    # Sums of nothing, which no value of a weight, not even inf, can change.
    zeros = [w.reshape(-1)[:0].sum() for w in tokenizer.parameters() if w.requires_grad]
    if not zeros:
        return input_ids, embeddings
    if embeddings is None:
        embeddings = model.get_input_embeddings()(input_ids)
    zero = torch.stack([each.to(embeddings) for each in zeros]).sum()
    return None, embeddings + zero
