"""A share of a table's rows: of several machines each takes its own."""

from __future__ import annotations

import re

from bvllm_adapters.tables.table import Table, TableRow

Share = str | slice | None
"""As a slice, "1::8", or as Python has it; None: all."""
_SLICE = re.compile(r"(\d*):(\d*)(?::(\d*))?")


def share_of(table: Table, rows: Share = None, videos: Share = None) -> list[TableRow]:
    """The rows that are this process' own, in the table's order; none is a share too.

    Args:
        rows: of the table's rows. videos: of its videos, in the order in which they first come:
            all rows of a video go together, so that it is read by one process.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was wanted.
    """
    if rows is not None and videos is not None:
        raise ValueError(f"rows: got {rows!r} beside videos={videos!r}, wanted one of them")
    if videos is None:
        return list(table.rows[_slice("rows", rows)])
    named = [str(row.values.get("video")) for row in table.rows]
    own = set([*dict.fromkeys(named)][_slice("videos", videos)])
    return [row for row, name in zip(table.rows, named, strict=True) if name in own]


def _slice(name: str, share: Share) -> slice:
    if share is None:
        return slice(None)
    if isinstance(share, slice):
        try:
            share.indices(0)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: got {share!r}, wanted a slice of whole numbers") from error
        return share
    if not isinstance(share, str):
        raise TypeError(f"{name}: got {share!r}, wanted a slice, such as '1::8'")
    found = _SLICE.fullmatch(share.strip())
    if found is None or (found[3] and int(found[3]) == 0):
        raise ValueError(f"{name}: got {share!r}, wanted a slice, such as 1::8 or 0:1000")
    start, stop, step = (int(part) if part else None for part in found.groups())
    return slice(start, stop, step)
