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
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import logging

from cropvlm_jax.data import batching, faults, seed_boxes
from cropvlm_jax.data.source import Examples
from cropvlm_jax.data.sources import open_source
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits

SCENES = 1_000_000  # of zoom_digits, each drawn when it is asked for
ATTEMPTS = 20  # examples tried for one place in a batch before the data is called broken


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
            itself: one of `sources.NAMES`, or "zoom_digits", which has no folder.
        seed: Seed of the scenes of "zoom_digits".

    Raises:
        ValueError: A setting is wrong, or no source is named.
    """
    opened: list[Examples] = []
    for name, settings in sources.items():
        kind = settings.kind or name
        if kind == "zoom_digits":
            opened.append(ZoomDigits(settings.split, SCENES, seed))
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
        buckets: The bucket of each example, -1 for those that are left out; int32 `[n]`.
        waiting: How many examples were drawn for batches that never filled, by bucket.
    """

    batches: np.ndarray
    buckets: np.ndarray
    waiting: dict[int, int]

    def left_out(self) -> str:
        """How many examples no batch holds, for the log."""
        unreadable = int((self.buckets < 0).sum())
        waiting = ", ".join(f"{n} of {b // 100}x{b % 100} tiles" for b, n in self.waiting.items())
        return (
            f"{unreadable} pictures unreadable; in batches that never filled: {waiting or 'none'}"
        )


def bucket_examples(
    source: Examples, cropper_input: batching.CropperInput | None, first: int | None = None
) -> np.ndarray:
    """The bucket of every example, from the headers of the pictures.

    Args:
        source: The examples.
        cropper_input: What the cropper sees of an example; None where no picture is split.
        first: How many examples to look at; None looks at all.

    Returns:
        100 times the rows of tiles plus the columns, int32 `[n]`, or 0 where pictures are not
        split; -1 where the header cannot be read (the log counts and names these).
    """
    count = len(source) if first is None else min(first, len(source))
    if cropper_input is None or not cropper_input.splits:
        return np.zeros(count, np.int32)
    logged = time.monotonic()
    unreadable: list[str] = []

    def bucket(index: int) -> int:
        try:
            height, width = source.picture_size(index)
            rows, columns = cropper_input.grid(height, width)
        except (ValueError, OSError) as error:
            unreadable.append(f"{source.name_of(index)}: {error}")
            return -1
        return 100 * rows + columns

    buckets = np.empty(count, np.int32)
    with futures.ThreadPoolExecutor() as pool:
        for start in range(0, count, 1024):  # so that few calls are pending at once
            some = range(start, min(start + 1024, count))
            buckets[some] = list(pool.map(bucket, some))
            if time.monotonic() - logged > 10:
                logged = time.monotonic()
                logging.info("reading picture sizes: %d of %d", some.stop, count)
    faults.log(f"{len(unreadable)} of {count} examples left out", sorted(unreadable))
    return buckets


def plan_batches(
    order: Iterable[int], buckets: np.ndarray, batch_size: int, steps: int | None = None
) -> Plan:
    """Fills batches with examples of one bucket, in the order in which they fill up.

    Args:
        order: Indices of examples; may be endless where `steps` is given.
        buckets: The bucket of every example, -1 for those to leave out; int `[n]`.
        batch_size: B.
        steps: How many batches are wanted, at least 1; None fills as many as `order` has examples.

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
        raise ValueError(f"no batch of {batch_size} can be filled: examples by bucket are {left}")
    return Plan(np.array(batches, np.int64).reshape(-1, batch_size), buckets, left)


def describe_prompts(buckets: np.ndarray, cropper_input: batching.CropperInput) -> str:
    """What the cropper reads of the pictures, for the log.

    Args:
        buckets: The bucket of every example, as `bucket_examples` returns them; int `[n]`.
        cropper_input: What the cropper sees of an example.
    """
    described = []
    for bucket, count in collections.Counter(buckets[buckets >= 0].tolist()).most_common():
        rows, columns = divmod(bucket, 100)
        tokens = batching.crop_prompt_length(cropper_input.conversations, (rows, columns))
        tiles = f"{rows}x{columns} tiles and the whole" if bucket else "one tile"
        described.append(f"{count} of {tiles}, {tokens} tokens")
    return f"prompts without their questions: {'; '.join(described)}"


class PlannedBatches:
    """The batches of a plan, each prepared when it is asked for.

    An example that cannot be prepared is named in the log, once, and the next one of its bucket
    takes its place: `example_id` of the batch tells what was really used.
    """

    def __init__(
        self,
        source: Examples,
        prepare: Callable[[Any, int], Any],
        plan: Plan,
        columns: slice | np.ndarray = slice(None),
    ):
        """Binds the plan to its data.

        Args:
            source: The examples.
            prepare: Makes a row of an example and its index: a `batching.Preparer` or
                `batching.BoxPreparer`.
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
        indices = self._plan.batches[step, self._columns].tolist()
        return batching.stack([self._row(index) for index in indices])

    def _row(self, index: int) -> Any:
        buckets = self._plan.buckets
        peers = index + 1 + np.flatnonzero(np.roll(buckets == buckets[index], -index - 1))
        for attempt in itertools.islice([index, *peers % len(buckets)], ATTEMPTS):
            try:
                return self._prepare(self._source[int(attempt)], int(attempt))
            except (ValueError, OSError) as error:
                if attempt not in self._named:
                    self._named.add(attempt)
                    name = self._source.name_of(int(attempt))
                    logging.warning("skipped example %d, %s: %s", attempt, name, error)
        raise ValueError(
            f"{ATTEMPTS} examples in a row could not be used, from example {index} on: see the log"
        )


def iterate(batches: PlannedBatches, start: int = 0, workers: int = 0) -> Iterator[Any]:
    """Batches from number `start` on, prepared ahead.

    Args:
        batches: The batches of a run.
        start: Number of the first one; those before it were used already.
        workers: Processes that prepare batches. 0 takes threads, which is enough where decoding
            pictures is the work, because that runs outside of Python's lock.
    """
    dataset = grain.MapDataset.source(batches)[start:]
    if not workers:
        return iter(dataset.to_iter_dataset(grain.ReadOptions(4, 4)))
    ahead = dataset.to_iter_dataset(grain.ReadOptions(1, 1))
    options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=2)
    return iter(ahead.mp_prefetch(options, _ignore_interrupts))


def _ignore_interrupts(*_: int) -> None:
    """Ctrl-C reaches workers too, and a run that is told to stop still has a step to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
