# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which examples make up which batch: mixtures, buckets, epochs, and the iterator over batches.

The order of a whole run is planned before it starts, from the seed alone: batch k holds the same
examples whatever the number of processes, workers or restarts. All processes plan alike, so that
every one of them is at the same bucket at the same step, and each loads its own rows.
"""

import collections
import hashlib
import itertools
import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np
from absl import logging

from cropvlm_jax.data import batching, seed_boxes
from cropvlm_jax.data.buckets import Bucket, tell
from cropvlm_jax.data.source import Examples
from cropvlm_jax.data.sources import DRAWN, open_drawn, open_source
from cropvlm_jax.pixels.canvas import Canvas, empty

SCENES = 1_000_000  # of a drawn set, each drawn when it is asked for
ATTEMPTS = 20  # examples tried for one place in a batch before the data is called broken
AHEAD = 2  # batches that threads prepare while the one before them is used


class Mixture:
    """Several sources as one: source after source, or drawn in proportion to weights."""

    def __init__(self, sources: Sequence[Examples], weights: Sequence[float] | None = None):
        """Joins the sources.

        Args:
            sources: The examples.
            weights: How often examples of each source are drawn, in any unit; None draws every
                example of all sources equally often.

        Raises:
            ValueError: There is not one positive weight for each source.
        """
        if not sources:
            raise ValueError("a mixture needs at least one source")
        if weights is not None and (len(weights) != len(sources) or min(weights) <= 0):
            raise ValueError(f"{len(sources)} sources take as many positive weights: {weights}")
        self._sources, self._weights = list(sources), weights
        self._ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _find(self, index: int) -> tuple[Examples, int]:
        """The source that has an example, and its index there."""
        which = int(np.searchsorted(self._ends, index, side="right"))
        return self._sources[which], index - (int(self._ends[which - 1]) if which else 0)

    def __getitem__(self, index: int) -> Any:
        source, inner = self._find(index)
        return source[inner]

    def picture_size(self, index: int) -> tuple[int, int]:
        """Height and width of an example's picture; raises as the sources do."""
        source, inner = self._find(index)
        return source.picture_size(inner)

    def name_of(self, index: int) -> str:
        """What messages call an example."""
        source, inner = self._find(index)
        return source.name_of(inner)

    @property
    def fingerprint(self) -> str:
        """The fingerprints of the sources, in their order."""
        return "\n".join(source.fingerprint for source in self._sources)

    def order(self, seed: int) -> Iterator[int]:
        """Indices of examples without end; each pass over a source is shuffled anew."""
        if self._weights is None:
            dataset = grain.MapDataset.range(len(self)).shuffle(seed).repeat()
        else:
            starts = [0, *self._ends[:-1].tolist()]
            parts = [
                grain.MapDataset.range(start, stop).shuffle(seed + i).repeat()
                for i, (start, stop) in enumerate(zip(starts, self._ends.tolist(), strict=True))
            ]
            dataset = grain.MapDataset.mix(parts, self._weights)
        return (int(dataset[i]) for i in itertools.count())


def open_mixture(sources: Mapping[str, Any], seed: int) -> Mixture:
    """Opens the sources of a run.

    Args:
        sources: Settings by name, as training configures them. The data set is `kind`, or the name
            itself: one of `sources.NAMES`, or of `sources.DRAWN`, which have no folder.
        seed: Seed of the scenes of drawn sets.

    Raises:
        ValueError: A setting is wrong, or no source is named.
    """
    opened: list[Examples] = []
    for name, settings in sources.items():
        kind = settings.kind or name
        if kind in DRAWN:
            opened.append(open_drawn(kind, settings.split, SCENES, seed))
            continue
        if settings.prepared:
            from cropvlm_jax.data import builders  # takes packages that the others do not

            source = builders.open_prepared(kind, settings.folder, settings.split)
        else:
            source = open_source(kind, settings.folder, settings.split)
        start, stop = settings.part
        source = source.part(start, stop)
        opened.append(seed_boxes.labelled(source, settings.boxes) if settings.boxes else source)
    weights = [settings.weight for settings in sources.values()]
    return Mixture(opened, weights if any(weights) else None)


class Plan(NamedTuple):
    """The examples of every batch of a run.

    Attributes:
        batches: Indices of examples, int64 `[steps, B]`; those of a batch are of one bucket.
        buckets: `Bucket.number` of each example, -1 for those that are left out; int32 `[n]`.
        waiting: How many examples were drawn for batches that never filled, by bucket.
        canvases: What there is for the original pixels.
    """

    batches: np.ndarray
    buckets: np.ndarray
    waiting: dict[int, int]
    canvases: Sequence[Canvas] = ()

    def left_out(self) -> str:
        """How many examples no batch holds, for the log."""
        unreadable = int((self.buckets < 0).sum())
        waiting = tell(self.waiting, self.canvases)
        return f"{unreadable} pictures unreadable; in batches that never filled: {waiting}"


def plan_batches(
    order: Iterable[int],
    buckets: np.ndarray,
    batch_size: int,
    steps: int | None = None,
    canvases: Sequence[Canvas] = (),
) -> Plan:
    """Fills batches with examples of one bucket, in the order in which they fill up.

    Args:
        order: Indices of examples; may be endless where `steps` is given.
        buckets: The bucket of every example, -1 for those to leave out; int `[n]`.
        batch_size: B.
        steps: How many batches are wanted, at least 1; None fills as many as `order` has examples.
        canvases: What there is for the original pixels, for messages.

    Raises:
        ValueError: No batch can be filled.
    """
    if not (buckets >= 0).any():
        raise ValueError(f"none of the {len(buckets)} examples can be used; see the log")
    waiting: dict[int, list[int]] = collections.defaultdict(list)
    batches: list[list[int]] = []
    for index in order:
        bucket = int(buckets[index])
        if bucket < 0:
            continue
        waiting[bucket].append(index)
        if len(waiting[bucket]) == batch_size:
            batches.append(waiting.pop(bucket))
            if len(batches) == steps:
                break
    left = {bucket: len(indices) for bucket, indices in waiting.items()}
    if not batches:
        raise ValueError(
            f"no batch of {batch_size} can be filled: there are {tell(left, canvases)}; take more "
            "examples, a smaller batch_size, or one data.canvas for all"
        )
    return Plan(np.array(batches, np.int64).reshape(-1, batch_size), buckets, left, canvases)


class Prepare(Protocol):
    """Makes rows of examples; picklable, as data workers are processes."""

    @property
    def canvases(self) -> Sequence[Canvas]:
        """What there is for the original pixels; empty where rows have no canvas."""
        ...

    def __call__(
        self, example: Any, index: int, canvas: np.ndarray | None = None, step: int = 0, /
    ) -> Any:
        """A row of an example and its index.

        Args:
            example: What the source has.
            index: Of the example in the source.
            canvas: What to put its picture on, uint8 `[Hc, Wc, 3]`; None makes one.
            step: Number of the batch.
        """
        ...


class PlannedBatches:
    """The batches of a plan, each prepared when it is asked for.

    An example that cannot be prepared is named in the log, once, and the next one of its bucket
    takes its place: `example_id` of the batch tells what was really used.
    """

    def __init__(
        self,
        source: Examples,
        prepare: Prepare,
        plan: Plan,
        columns: slice | np.ndarray = slice(None),
    ):
        """Binds the plan to its data.

        Args:
            source: The examples.
            prepare: Makes a row of an example: a `batching.Preparer` or another of its kind.
            plan: The examples of every batch.
            columns: Which examples of each batch this process loads.
        """
        self._source, self._prepare, self._plan, self._columns = source, prepare, plan, columns
        self._named: set[int] = set()  # examples that could not be used, of which the log told

    @property
    def fingerprint(self) -> str:
        """A digest of the examples and their order: other runs have another."""
        return self.fingerprint_of(len(self))

    def fingerprint_of(self, steps: int) -> str:
        """The fingerprint of a run of the first `steps` batches."""
        batches = self._plan.batches[:steps].tobytes()
        return hashlib.sha256(self._source.fingerprint.encode() + batches).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._plan.batches)

    def example(self, index: int) -> Any:
        """The example of an index, such as `example_id` of a batch has, as its source has it."""
        return self._source[index]

    def __getitem__(self, step: int) -> Any:
        with futures.ThreadPoolExecutor(1) as thread:
            return self.begin(step, thread).result()

    def begin(self, step: int, threads: futures.Executor) -> "BatchAhead":
        """Has threads prepare the rows of a batch.

        Pictures are decoded where they stay: each has its canvas in the array of the batch.
        """
        indices = self._plan.batches[step, self._columns].tolist()
        canvases: Any = [None] * len(indices)
        if shapes := self._prepare.canvases:
            bucket = Bucket.of(int(self._plan.buckets[indices[0]]))
            canvases = empty(len(indices), shapes[bucket.canvas])
        rows = [
            threads.submit(self._row, index, canvas, step)
            for index, canvas in zip(indices, canvases, strict=True)
        ]
        return BatchAhead(rows, canvases if shapes else None)

    def _row(self, index: int, canvas: np.ndarray | None, step: int) -> Any:
        for attempt in itertools.islice(self._candidates(index), ATTEMPTS):
            try:
                return self._prepare(self._source[attempt], attempt, canvas, step)
            except (ValueError, OSError) as error:
                if attempt not in self._named:
                    self._named.add(attempt)
                    name = self._source.name_of(attempt)
                    logging.warning("skipped example %d, %s: %s", attempt, name, error)
        raise ValueError(
            f"{ATTEMPTS} examples in a row could not be used, from example {index} on: see the log"
        )

    def _candidates(self, index: int) -> Iterator[int]:
        """An example, and then the next ones of its bucket."""
        yield index
        buckets = self._plan.buckets
        peers = index + 1 + np.flatnonzero(np.roll(buckets == buckets[index], -index - 1))
        yield from (peers % len(buckets)).tolist()


class BatchAhead(NamedTuple):
    """A batch whose rows are being prepared.

    Attributes:
        rows: Its rows, in their order.
        canvases: uint8 `[B, Hc, Wc, 3]`, which the rows' canvases are views of; None without any.
    """

    rows: list[futures.Future[Any]]
    canvases: np.ndarray | None

    def result(self) -> Any:
        """The batch, once all rows are there; raises what kept one from being prepared."""
        rows = [row.result() for row in self.rows]
        if self.canvases is None:
            return batching.stack(rows)
        without = batching.stack([row._replace(canvas=None) for row in rows])
        return without._replace(canvas=self.canvases)


def iterate(batches: PlannedBatches, start: int = 0, workers: int = 0) -> Iterator[Any]:
    """Batches from number `start` on, prepared ahead.

    Args:
        batches: The batches of a run.
        start: Number of the first one; those before it were used already.
        workers: Processes that prepare batches. 0 takes threads, one a core, which is enough where
            decoding pictures is the work, because that runs outside of Python's lock.
    """
    if not workers:
        return _by_threads(batches, start)
    ahead = grain.MapDataset.source(batches)[start:].to_iter_dataset(grain.ReadOptions(1, 1))
    options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=2)
    return iter(ahead.mp_prefetch(options, _ignore_interrupts))


def _by_threads(batches: PlannedBatches, start: int) -> Iterator[Any]:
    """Batches whose rows are shared among threads; at most `AHEAD` are in memory before use.

    What was yielded is not kept here.
    """
    threads = futures.ThreadPoolExecutor(len(os.sched_getaffinity(0)), "rows")
    ahead: collections.deque[BatchAhead] = collections.deque()
    steps = iter(range(start, len(batches)))
    try:
        ahead.extend(batches.begin(step, threads) for step in itertools.islice(steps, AHEAD))
        while ahead:
            futures.wait(ahead[0].rows)
            ahead.extend(batches.begin(step, threads) for step in itertools.islice(steps, 1))
            yield ahead.popleft().result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _ignore_interrupts(*_: int) -> None:
    """Ctrl-C reaches workers too, and a run that is told to stop still has a step to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
