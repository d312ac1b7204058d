"""Stage 4: never more tokens than the budget (paper, section 3.4, after Bolya et al., ToMe)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bvllm_adapters.checks import check_count
from bvllm_adapters.features import Selection, VisualTokens, check_tensor, in_float32


class BudgetMerger(nn.Module):
    """Progressive spatial visual token merging: the most similar tokens of a frame become one.

    Rounds of bipartite matching halve a frame's tokens until one last round lands exactly on its
    share. Merged tokens are means weighted by how many they hold, so sum(size * token) of a frame
    is kept. With no more tokens than the budget, nothing is touched.

    Axes: M frames, R tokens per frame, N tokens that are left, H width.

    Args:
        similarity_width: tokens are compared by so many of their first features; what follows
            (a host's further levels) goes along in the same weights. None: by all H.
    """

    def __init__(self, similarity_width: int | None = None) -> None:
        super().__init__()
        if similarity_width is not None:
            check_count("similarity_width", similarity_width)
        self.similarity_width = similarity_width

    def forward(
        self,
        tokens: Tensor,
        max_tokens: int | Sequence[int] | None,
        selection: Selection | None = None,
    ) -> VisualTokens:
        """Fit one visual input into its budget.

        Args:
            tokens: (M, R, H).
            max_tokens: tokens in all, shared out by `allot`; or a share for each of the M frames
                (0: the frame goes); None: no limit.
            selection: the M frames that the tokens were sampled from; its sizes say which were
                chosen most. None: the frames of an M-frame video, each chosen once.

        Returns:
            VisualTokens with N = min(max_tokens, M R), frames in time order, within a frame in
            the order of each token's earliest member.
        """
        check_tensor("tokens", tokens, "M R H")
        frames, room, width = tokens.shape
        if self.similarity_width is not None and self.similarity_width > width:
            raise ValueError(
                f"tokens: got width {width}, wanted at least "
                f"similarity_width={self.similarity_width}"
            )
        if selection is None:
            selection = Selection.everything(frames, tokens.device)
        if len(selection) != frames:
            raise ValueError(f"selection: got {len(selection)} frames, wanted {frames} as tokens")
        shares = self._shares(max_tokens, [room] * frames, selection)
        merged = tokens.new_zeros(sum(shares), width)
        size = torch.zeros(sum(shares), dtype=torch.float32, device=tokens.device)
        place = torch.zeros(sum(shares), dtype=torch.int64, device=tokens.device)
        slot = torch.repeat_interleave(
            torch.arange(frames, device=tokens.device),
            torch.tensor(shares, device=tokens.device),
        )
        for share in sorted(set(shares) - {0}):  # two values at most, unless shares were given
            of = torch.tensor([s == share for s in shares], device=tokens.device)
            rows = of[slot]
            merged[rows], size[rows], place[rows] = (
                part.flatten(0, 1) for part in merge_to(tokens[of], share, self.similarity_width)
            )
        return VisualTokens(merged, slot, size, selection, selection.size.new_zeros(0), place)

    @staticmethod
    def _shares(
        max_tokens: int | Sequence[int] | None, room: list[int], selection: Selection
    ) -> list[int]:
        if max_tokens is None:
            return room
        if not isinstance(max_tokens, Sequence):
            return allot(room, check_count("max_tokens", max_tokens), selection.size.tolist())
        shares = [check_count("max_tokens", share, least=0) for share in max_tokens]
        if len(shares) != len(room):
            raise ValueError(f"max_tokens: got {len(shares)} shares, wanted {len(room)}")
        return [min(share, space) for share, space in zip(shares, room, strict=True)]


def allot(room: Sequence[int], max_tokens: int, weight: Sequence[float]) -> list[int]:
    """Share a budget out among frames: exactly min(max_tokens, sum(room)) in all.

    Each frame gets the same, none more than its room; what is left over goes to the frames of
    most weight, one token each, the earlier first. So with fewer tokens than frames, the frames
    of most weight keep one.

    Args:
        room: tokens that each frame has. weight: how much each frame counts.
    """
    level = _largest_level(room, max_tokens)
    shares = [min(space, level) for space in room]
    left = max_tokens - sum(shares)
    for frame in sorted(range(len(room)), key=lambda i: -weight[i]):
        if left > 0 and shares[frame] < room[frame]:
            shares[frame] += 1
            left -= 1
    return shares


def _largest_level(room: Sequence[int], max_tokens: int) -> int:
    """The largest n for which sum(min(space, n)) <= max_tokens, n up to the largest space."""
    low, high = 0, max(room)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(space, middle) for space in room) <= max_tokens:
            low = middle
        else:
            high = middle - 1
    return low


def shares_of_prompts(
    shapes: Sequence[tuple[int, int]],
    weights: Sequence[Sequence[float]],
    prompts: Sequence[int],
    max_tokens: int | None,
) -> list[list[int]]:
    """`prompt_shares` of the visual inputs of several prompts.

    Args:
        shapes: (M, R) of each input. weights: M of each. prompts: which prompt each belongs to.
        max_tokens: of each prompt.
    """
    inputs_of: dict[int, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        inputs_of[prompt].append(i)
    shares: dict[int, list[int]] = {}
    for inputs in inputs_of.values():
        of = prompt_shares([shapes[i] for i in inputs], [weights[i] for i in inputs], max_tokens)
        shares.update(zip(inputs, of, strict=True))
    return [shares[i] for i in range(len(shapes))]


def prompt_shares(
    shapes: Sequence[tuple[int, ...]], sizes: Sequence[Sequence[float]], max_tokens: int | None
) -> list[list[int]]:
    """Tokens for each frame of each visual input of one prompt.

    Args:
        shapes: (M, R) of each input: its frames and their tokens. sizes: M sizes of each.

    The most chosen frame of each input goes before all other frames, so that no input is left
    without a token while the budget allows one each.
    """
    room = [tokens for frames, tokens in shapes for _ in range(frames)]
    if max_tokens is not None:
        ahead = 1.0 + max(max(size) for size in sizes)
        weight: list[float] = []
        for of in sizes:
            first = max(range(len(of)), key=of.__getitem__)
            weight += [size + ahead * (frame == first) for frame, size in enumerate(of)]
        room = allot(room, max_tokens, weight)
    shares = iter(room)
    return [[next(shares) for _ in range(frames)] for frames, _ in shapes]


def merge_to(
    tokens: Tensor, target: int, similarity_width: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge similar tokens of each frame until `target` are left, in the order of the earliest
    member of each.

    Args:
        tokens: (B, T, H), B frames of T tokens. target: from 1 up; T or more is a no-op.
        similarity_width: of the features that are compared; None: all H.

    Returns:
        (B, target, H) in the dtype of `tokens`, (B, target) float32 sizes that sum to T, and
        (B, target) int64 places of each one's earliest member, which increase.
    """
    check_count("target", target)
    batch, count, _ = tokens.shape
    if target >= count:
        size = torch.ones(batch, count, dtype=torch.float32, device=tokens.device)
        return tokens, size, torch.arange(count, device=tokens.device).expand(batch, -1)
    merged, size, first = merge_rounds(tokens.float(), target, similarity_width)
    place, by_first = torch.sort(first, dim=1)
    merged = merged.gather(1, by_first[..., None].expand_as(merged))
    return merged.to(tokens.dtype), size.gather(1, by_first), place


def merge_rounds(
    merged: Tensor, target: int, similarity_width: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Rounds of matching until `target` tokens are left, in the order of the last round, which is
    that of the authors' code.

    Args:
        merged: (B, T, H) float32. target: less than T.
        similarity_width: of the features that are compared; None: all H.

    Returns:
        (B, target, H), (B, target) how many each holds, and the position of each one's earliest
        member.
    """
    batch, count, _ = merged.shape
    size = torch.ones(batch, count, dtype=torch.float32, device=merged.device)
    first = torch.arange(count, device=merged.device).expand(batch, -1)
    while count > target:
        # Halve; the last round is cut short, or takes one token more of an odd number.
        merges = count // 2 if count // 2 > target else count - target
        merged, size, first = merge_round(merged, size, first, merges, similarity_width)
        count -= merges
    return merged, size, first


def merge_round(
    tokens: Tensor,
    size: Tensor,
    first: Tensor,
    merges: int,
    similarity_width: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One round of bipartite matching: `merges` tokens join their most similar counterpart.

    Tokens at even places are compared with those at odd places by cosine; each even one points at
    its best odd one, and the `merges` strongest pairs merge. Of equals the first wins.

    Args:
        tokens: (B, T, H) float32. size: (B, T) how many each holds. first: (B, T) position of
            each one's earliest member. merges: at most ceil(T / 2).
        similarity_width: of the features that are compared; None: all H.

    Returns:
        The same with T - merges tokens: the even ones that stayed, most similar first, then the
        odd ones.
    """
    compared = tokens[..., :similarity_width]
    similarity = cosine(compared[:, ::2], compared[:, 1::2])
    best, partner = _first_max(similarity)
    ranked = torch.argsort(best, dim=1, descending=True, stable=True)
    leaving, staying = 2 * ranked[:, :merges], 2 * ranked[:, merges:]
    partner = partner.gather(1, ranked[:, :merges])

    def pick(x: Tensor, places: Tensor) -> Tensor:
        return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))

    size = size[..., None]
    weighted = tokens * size
    odd_sum = weighted[:, 1::2]
    # A product, since a GPU adds up what is scattered in any order. Sizes are whole numbers.
    joins = torch.arange(odd_sum.shape[1], device=tokens.device)[:, None] == partner[:, None]
    with in_float32(tokens):
        odd_sum = odd_sum + joins.to(tokens.dtype) @ pick(weighted, leaving)
    odd_size = size[:, 1::2].scatter_add(1, partner[..., None], pick(size, leaving))
    odd_first = first[:, 1::2].scatter_reduce(1, partner, first.gather(1, leaving), "amin")
    return (
        torch.cat([pick(tokens, staying), odd_sum / odd_size], dim=1),
        torch.cat([pick(size, staying), odd_size], dim=1).squeeze(2),
        torch.cat([first.gather(1, staying), odd_first], dim=1),
    )


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(B, X, H), (B, Y, H) -> (B, X, Y); a zero vector is similar to nothing: 0."""
    with in_float32(a):
        return F.normalize(a.float(), dim=2) @ F.normalize(b.float(), dim=2).transpose(1, 2)


def _first_max(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over the last axis and the first place it stands at, on every device."""
    best = x.amax(dim=-1, keepdim=True)
    place = torch.arange(x.shape[-1], device=x.device)
    return best.squeeze(-1), torch.where(x == best, place, x.shape[-1]).amin(dim=-1)
