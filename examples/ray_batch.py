"""`bvllm batch` on the machines of a Ray cluster: an actor on each GPU, or on CPUs.

    pip install '.[ray]'
    python examples/ray_batch.py table.jsonl -o answers.jsonl --actors 2       # on this machine
    python examples/ray_batch.py table.jsonl -o answers.jsonl --address auto   # on a cluster

All options of `bvllm batch` are options here, and the results are the same file: what one has
begun, the other goes on with. This process alone writes it, a block of videos as soon as it is
done; videos and models are read by the actors, from folders that all machines share.

What Ray Data does otherwise and is not wanted here: for an error in one row it drops a whole block
(ours are caught row by row); a block that ends its actor's process it does again without end (here
twice, then its videos alone, and those that end it again are told as failed); it hangs without a
word where actors take every CPU (one is left over); it changes the order (results have their rows'
numbers).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext

from bvllm_adapters.bulk.by_video import by_video
from bvllm_adapters.bulk.run import run_table
from bvllm_adapters.bulk.video_row import VideoRow, read_rows, video_row
from bvllm_adapters.checks import check_count
from bvllm_adapters.cli import batch
from bvllm_adapters.cli.options import given
from bvllm_adapters.cli.progress import row_progress
from bvllm_adapters.tables.table import TableRow

TRIES = 2  # of a block whose process ends


class Actor:
    """A model, loaded once, that is asked about blocks of rows."""

    def __init__(self, options: argparse.Namespace, media: Path, tries: Any) -> None:
        self.ask, self.tries = batch.asker(options, media), tries

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        text = str(block["rows"][0])
        if ray.get(self.tries.begin.remote(text)) > TRIES:
            return {"results": ["[]"]}
        rows = [TableRow(*values) for values in json.loads(text)]
        return {"results": [json.dumps([*self.ask(rows)])]}


@ray.remote(num_cpus=0)
class Tries:
    """How often each block was begun, which outlives the actors."""

    def __init__(self) -> None:
        self.counts = Counter[str]()

    def begin(self, block: str) -> int:
        self.counts[block] += 1
        return self.counts[block]


class AskOnRay:
    """Rows asked by actors: what `run_table` does one after the other in one process.

    Args:
        actors: how many. each: what Ray keeps for each of them, such as num_gpus.
        together: videos in a block, of which an actor reads the next ones ahead.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        media: Path,
        *,
        actors: int,
        each: Mapping[str, float],
        together: int,
    ) -> None:
        self.options, self.media = options, media
        self.actors, self.each, self.together = actors, each, together

    @property
    def of(self) -> dict[str, Any]:
        """Told by a model where one fits: this process loads none."""

        def told(options: argparse.Namespace, media: Path) -> dict[str, Any]:
            return batch.asker(options, media).of

        task = ray.remote(**self.each)(told)
        found: dict[str, Any] = ray.get(task.remote(self.options, self.media))
        return found

    def read(self, row: TableRow) -> VideoRow:
        outside = bool(self.options.outside_media)
        return video_row(row, self.media, outside=outside, question=self.options.question)

    def __call__(self, rows: Sequence[TableRow]) -> Generator[dict[str, Any], None, None]:
        good, errors = read_rows(rows, self.read)
        yield from errors
        left, given = {row.row: row for row in good}, {row.number: row for row in rows}
        for together in dict.fromkeys((self.together, 1)):
            videos = iter(by_video(left.values()))
            blocks = []
            while some := [row.row for rows in islice(videos, together) for row in rows]:
                blocks.append([given[number] for number in some])
            if blocks:
                for row in self._asked(blocks):
                    del left[row["row"]]
                    yield row
        told = f"the process that asked it ended, {TRIES} times"
        yield from ({**row.told, "error": f"{row.place}: {told}"} for row in left.values())

    def _asked(self, blocks: Sequence[Sequence[TableRow]]) -> Generator[dict[str, Any], None, None]:
        """What came of blocks, but of those that were given up."""
        items = [
            {"rows": json.dumps([(row.number, row.place, dict(row.values)) for row in block])}
            for block in blocks
        ]
        answered = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Actor,
            fn_constructor_args=(self.options, self.media, Tries.remote()),
            compute=ActorPoolStrategy(size=self.actors),
            batch_size=1,
            **self.each,
        )
        for block in answered.iter_rows():
            yield from json.loads(block["results"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    batch.arguments(parser)
    own = parser.add_argument_group("of the cluster")
    own.add_argument("--address", help="of a running one, or auto (one on this machine is started)")
    own.add_argument("--actors", type=int, help="models (as many as GPUs, or one)")
    own.add_argument("--cpus", type=int, default=1, help="of each actor (1)")
    own.add_argument("--together", type=int, default=8, help="videos in a block (8)")
    options = parser.parse_args()
    try:
        for name in ("actors", "cpus", "together"):
            if getattr(options, name) is not None:
                check_count(name, getattr(options, name))
        table, media = batch.asked_table(options)
        actors, each = started(options)
        work = AskOnRay(
            options, media.resolve(), actors=actors, each=each, together=options.together
        )
        with row_progress() as progress:
            found = run_table(
                work, table, options.out, progress=progress, **given(options, batch.OF_RUN)
            )
    except KeyboardInterrupt:
        print("ray_batch: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError, ray.exceptions.RayError) as error:
        print(f"ray_batch: {getattr(error, 'cause', None) or error}", file=sys.stderr)
        return 1
    print(batch.told(found, len(table.rows), str(options.out)))
    return 0


def started(options: argparse.Namespace) -> tuple[int, dict[str, float]]:
    """Ray, here or there: how many actors it has room for, and what each is to have.

    Raises:
        ValueError: they would take every CPU, where Ray waits without a word.
    """
    wanted = options.actors or 1
    # Here CPUs are only counted, and each actor's threads are as many as its own.
    cpus = None if options.address else max(wanted * options.cpus + 1, 2)
    ray.init(address=options.address, num_cpus=cpus, log_to_driver=False, logging_level="ERROR")
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0))
    actors = options.actors or gpus or 1
    if actors * options.cpus >= there["CPU"]:
        raise ValueError(
            f"--actors: got {actors} of {options.cpus} CPUs each, wanted fewer than the "
            f"{there['CPU']:g} CPUs that are there"
        )
    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return actors, {"num_cpus": options.cpus, "num_gpus": 1 if gpus else 0}


if __name__ == "__main__":
    sys.exit(main())
