"""Stage 4: never more tokens than the budget (paper, section 3.4, after Bolya et al., ToMe)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bvllm_adapters.checks import check_count
from bvllm_adapters.context import Round, in_float32, is_looking, members_of
from bvllm_adapters.features import Selection, VisualTokens, check_tensor, first_max


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
        merged, slot, size, place = self._merged(tokens, shares)
        members = None
        if is_looking():  # by merging once more, which comes out the same
            by = self.similarity_width
            members = members_of(lambda x, n, to: merge_to(x, n, by, to), tokens, shares)
        return VisualTokens(merged, slot, size, selection, size[:0], place, members=members)

    def _merged(self, tokens: Tensor, shares: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, H) tokens, their (N,) frames, sizes and places."""
        row = torch.arange(len(shares), device=tokens.device)
        width = self.similarity_width
        if min(shares) == max(shares) > 0:  # nothing need be put in its place
            merged, size, place = merge_to(tokens, shares[0], width)
            slot = row.repeat_interleave(place.shape[1])
            return merged.flatten(0, 1), slot, size.flatten(), place.flatten()
        slot = row.repeat_interleave(torch.tensor(shares, device=tokens.device))
        merged = tokens.new_zeros(len(slot), tokens.shape[2])
        size = torch.zeros(len(slot), dtype=torch.float32, device=tokens.device)
        place = torch.zeros_like(slot)
        for share in sorted(set(shares) - {0}):  # two values at most, unless shares were given
            of = torch.tensor([s == share for s in shares], device=tokens.device)
            there = of[slot]
            merged[there], size[there], place[there] = (
                part.flatten(0, 1) for part in merge_to(tokens[of], share, width)
            )
        return merged, slot, size, place

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


def budgets_of_frames(
    beside: Sequence[int], prompts: Sequence[int], max_tokens: int | None
) -> dict[int, int | None]:
    """What each prompt's budget leaves for frames beside tokens of no frame, which go where there
    would be nothing left.

    Args:
        beside: such tokens of each visual input. prompts: which prompt each belongs to.
    """
    of_prompt: dict[int, int] = defaultdict(int)
    for prompt, count in zip(prompts, beside, strict=True):
        of_prompt[prompt] += count
    if max_tokens is None:
        return dict.fromkeys(of_prompt)
    return {p: max_tokens - (n if n < max_tokens else 0) for p, n in of_prompt.items()}


def shares_of_prompts(
    rooms: Sequence[Sequence[int]],
    weights: Sequence[Sequence[float]],
    prompts: Sequence[int],
    max_tokens: Mapping[int, int | None],
) -> list[list[int]]:
    """`shares_in_prompt` of the visual inputs of several prompts.

    Args:
        rooms: of each input, how many tokens each of its M frames has. weights: M of each.
        prompts: which prompt each belongs to. max_tokens: of each prompt, for frames.
    """
    inputs_of: dict[int, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        inputs_of[prompt].append(i)
    shares: dict[int, list[int]] = {}
    for prompt, inputs in inputs_of.items():
        limit = max_tokens[prompt]
        of = shares_in_prompt([rooms[i] for i in inputs], [weights[i] for i in inputs], limit)
        shares.update(zip(inputs, of, strict=True))
    return [shares[i] for i in range(len(rooms))]


def shares_in_prompt(
    rooms: Sequence[Sequence[int]], sizes: Sequence[Sequence[float]], max_tokens: int | None
) -> list[list[int]]:
    """Tokens for each frame of each visual input of one prompt, none more than its room.

    The most chosen frame of each input goes before all other frames, so that no input is left
    without a token while the budget allows one each.
    """
    room = [tokens for own in rooms for tokens in own]
    if max_tokens is not None:
        ahead = 1.0 + max(max(size) for size in sizes)
        weight: list[float] = []
        for of in sizes:
            first = max(range(len(of)), key=of.__getitem__)
            weight += [size + ahead * (frame == first) for frame, size in enumerate(of)]
        room = allot(room, max_tokens, weight)
    shares = iter(room)
    return [[next(shares) for _ in own] for own in rooms]


def merge_to(
    tokens: Tensor,
    target: int,
    similarity_width: int | None = None,
    rounds: list[Round] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge similar tokens of each frame until `target` are left, in the order of the earliest
    member of each.

    Args:
        tokens: (B, T, H), B frames of T tokens. target: from 1 up; T or more is a no-op.
        similarity_width: of the features that are compared; None: all H.
        rounds: where it is noted which tokens became one.

    Returns:
        (B, target, H) in the dtype of `tokens`, (B, target) float32 sizes that sum to T, and
        (B, target) int64 places of each one's earliest member, which increase.
    """
    check_count("target", target)
    batch, count, _ = tokens.shape
    if target >= count:
        size = torch.ones(batch, count, dtype=torch.float32, device=tokens.device)
        return tokens, size, torch.arange(count, device=tokens.device).expand(batch, -1)
    merged, size, first = merge_rounds(tokens.float(), target, similarity_width, rounds)
    place, order = torch.sort(first, dim=1)
    if rounds is not None:
        rounds.append((order, order[:, :0], order[:, :0]))
    return pick(merged, order).to(tokens.dtype), size.gather(1, order), place


def merge_rounds(
    tokens: Tensor,
    target: int,
    similarity_width: int | None = None,
    rounds: list[Round] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rounds of matching until `target` tokens are left, in the order of the last round, which is
    that of the authors' code.

    Args:
        tokens: (B, T, H) float32. target: less than T.
        similarity_width: of the features that are compared; None: all H.

    Returns:
        (B, target, H), (B, target) how many each holds, and the place of each one's earliest
        member.
    """
    batch, count, _ = tokens.shape
    sums, size = tokens, torch.ones(batch, count, dtype=torch.float32, device=tokens.device)
    first = torch.arange(count, device=tokens.device).expand(batch, -1)
    while count > target:
        # Halve; the last round is cut short, or takes one token more of an odd number.
        merges = count // 2 if count // 2 > target else count - target
        sums, size, first = merge_round(sums, size, first, merges, similarity_width, rounds)
        count -= merges
    return sums / size[..., None], size, first


def merge_round(
    sums: Tensor,
    size: Tensor,
    first: Tensor,
    merges: int,
    similarity_width: int | None = None,
    rounds: list[Round] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One round of bipartite matching: `merges` tokens join their most similar counterpart.

    Tokens at even places are compared with those at odd places by cosine; each even one points at
    its best odd one, and the `merges` strongest pairs merge. Of equals the first wins.

    Args:
        sums: (B, T, H) float32, of what each token holds; it points where the mean points.
        size: (B, T) how many that are. first: (B, T) the place of the earliest of them.
        merges: at most ceil(T / 2).
        similarity_width: of the features that are compared; None: all H.

    Returns:
        The same with T - merges tokens: the even ones that stayed, most similar first, then the
        odd ones.
    """
    batch, count, _ = sums.shape
    compared = sums[..., :similarity_width]
    best, partner = largest(cosine(compared[:, ::2], compared[:, 1::2]))
    ranked = torch.argsort(best, dim=1, descending=True, stable=True)
    leaving, staying = 2 * ranked[:, :merges], 2 * ranked[:, merges:]
    odd = torch.arange(1, count, 2, device=sums.device).expand(batch, -1)
    left = torch.cat([staying, odd], dim=1)
    into = staying.shape[1] + partner.gather(1, ranked[:, :merges])
    if rounds is not None:
        rounds.append((left, leaving, into))
    # Sizes are whole numbers: whatever the order in which they are added up.
    return (
        joined(pick(sums, left), into, pick(sums, leaving), staying.shape[1]),
        size.gather(1, left).scatter_add_(1, into, size.gather(1, leaving)),
        first.gather(1, left).scatter_reduce_(1, into, first.gather(1, leaving), "amin"),
    )


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(B, X, H), (B, Y, H) -> (B, X, Y); a zero vector is similar to nothing: 0."""
    with in_float32(a):
        return F.normalize(a.float(), dim=2) @ F.normalize(b.float(), dim=2).transpose(1, 2)


def largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over the last axis and the first place it stands at, on every device."""
    if x.device.type == "cpu":  # where max promises the first
        best, place = x.max(dim=-1)
        return best, place
    return x.amax(dim=-1), first_max(x)


def pick(x: Tensor, places: Tensor) -> Tensor:
    """(B, X, H), (B, Y) -> (B, Y, H)."""
    return x.flatten(0, 1).index_select(0, _rows(places, x.shape[1])).view(*places.shape, -1)


def joined(left: Tensor, into: Tensor, leaving: Tensor, start: int) -> Tensor:
    """`left` with what leaves added to it, in place and in the same order whenever it is called.

    Args:
        left: (B, N, H). into: (B, L) the place in `left` of each that leaves, none before `start`.
        leaving: (B, L, H).
    """
    if left.device.type == "cpu":
        add_in_turn(left, into, leaving)
    else:
        add_by_product(left[:, start:], into - start, leaving)
    return left


def add_in_turn(left: Tensor, into: Tensor, leaving: Tensor) -> None:
    """Row after row: a CPU never adds two at a time to one, whatever its threads."""
    left.flatten(0, 1).index_add_(0, _rows(into, left.shape[1]), leaving.flatten(0, 1))


def add_by_product(left: Tensor, into: Tensor, leaving: Tensor) -> None:
    """For a GPU, which adds up what is scattered in any order."""
    joins = torch.arange(left.shape[1], device=left.device)[:, None] == into[:, None]
    with in_float32(left):
        left += joins.to(left.dtype) @ leaving


def _rows(places: Tensor, count: int) -> Tensor:
    """(B, Y) places in B lists of `count` -> (B Y,) in all of them, one behind the other."""
    if len(places) == 1:
        return places[0]
    begin = count * torch.arange(len(places), device=places.device)
    return (places + begin[:, None]).flatten()
