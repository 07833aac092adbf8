# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Asking targets about items under conditions, into a file of records."""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from cropvlm_jax.data import faults
from cropvlm_jax.data.source import Example
from cropvlm_jax.evals.asking import Asked, Clock, replies_of
from cropvlm_jax.evals.conditions import (
    CONTROLS,
    NO_CROP,
    Conditions,
    boxes_of,
    shown_pictures,
)
from cropvlm_jax.evals.croppers import Cropper, numbers, propose
from cropvlm_jax.evals.items import Item, begin_record, read_item, read_parts
from cropvlm_jax.evals.records import (
    Record,
    RecordFile,
    known_records,
    name_records,
    open_records,
)
from cropvlm_jax.evals.registry import SCORERS, Benchmark
from cropvlm_jax.evals.shares import CHUNK, ask_in_shares, check_others, check_same, own_chunks
from cropvlm_jax.progress import Progress
from cropvlm_jax.readers.ahead import ahead
from cropvlm_jax.readers.base import EMPTY, Reader, ReaderUnavailable, Reply

PACKAGES = ("cropvlm-jax", "jax", "flax", "numpy", "pillow", "tokenizers")
TRADEOFFS = (
    "no crop and croppers are asked apart, so that each has its seconds; croppers say how sure "
    "they are, and targets that can tell it how likely their own answers are"
)
DIGITS = 4  # of confidences in records, so that machines agree


@dataclasses.dataclass(frozen=True)
class Study:
    """What is asked about every item.

    Attributes:
        name: of the benchmark.
        benchmark: how it is asked and scored.
        targets: answer; of different names.
        croppers: by name, the one to report last.
        conditions: what targets are shown.
        tradeoffs: whether what `TRADEOFFS` says is measured as well.
        confident: names of the targets that can tell how likely their own answers are, if so.
    """

    name: str
    benchmark: Benchmark
    targets: Sequence[Reader]
    croppers: Mapping[str, Cropper]
    conditions: Conditions
    tradeoffs: bool = False
    confident: tuple[str, ...] = ()

    def protocol(self, source: Any, split: str) -> dict[str, Any]:
        """All that the records depend on, and nothing else.

        Args:
            source: of the items.
            split: of the data set that they are from.
        """
        protocol = {
            "benchmark": self.name,
            "split": split,
            "source": hashlib.sha256(source.fingerprint.encode()).hexdigest()[:16],
            "metrics": {metric: SCORERS[metric].description for metric in self.benchmark.metrics},
            "prompt": self.benchmark.prompt,
            "conditions": {name: CONTROLS[name] for name in self.conditions.controls},
            "targets": {target.name: describe(target) for target in self.targets},
            "croppers": {
                name: describe(cropper) | numbers(cropper)
                for name, cropper in self.croppers.items()
            },
            "expansions": list(self.conditions.expansions),
            "seed": self.conditions.seed,
            "backend": jax.default_backend(),
            "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        }
        return protocol | {"tradeoffs": TRADEOFFS} if self.tradeoffs else protocol

    def collect(
        self, source: Any, total: int, out: Path, stem: str, protocol: Mapping[str, Any]
    ) -> tuple[str, list[Record]]:
        """Asks about the items that are not in the file of records yet.

        Args:
            source: of the items.
            total: how many of them, from the first on.
            out: folder of the file, which exists.
            stem: how its name begins.
            protocol: of this study.

        Returns:
            The name of the file, and the records of the items.

        Raises:
            ReaderUnavailable: a target answers nothing; it says where the records are.
        """
        name = name_records(stem, protocol)
        check_same(name)
        ask = functools.partial(self._ask_share, source, out / name, total)
        if jax.process_count() > 1:
            records = ask_in_shares(out / name, protocol, total, ask)
        else:
            with open_records(out / name, protocol) as file:
                ask(file)
                file.take_parts()
                records = file.records(total)
        with _saying_where(out / name, total):
            self._check_heard(records)
        unreadable = [
            f"{record['example_id']}: {record['unreadable']}"
            for record in records
            if "unreadable" in record
        ]
        faults.log(
            f"{stem}: {len(unreadable)} of {total} items left out, as there is no picture",
            unreadable,
        )
        return name, records

    def _ask_share(self, source: Any, path: Path, total: int, file: RecordFile) -> None:
        """Asks about the items of this process that have no record, or no answer.

        Args:
            source: of the items.
            path: of the records.
            total: how many items there are.
            file: what is known of them; gets the new records.

        Raises:
            ReaderUnavailable: a target answers nothing.
        """
        with _saying_where(path, total):
            self._ask_again(source, file, total)
            self._ask_on(source, path, file, total)

    def _ask_again(self, source: Any, file: RecordFile, total: int) -> None:
        """Asks again what a target did not answer, by a server that may be back."""
        known = file.records(total)
        silent = len(self._heard(known)) < len(self.targets)  # it may have been set up wrongly
        again = [r for r in known if "unreadable" not in r and (silent or _unanswered(r))]
        own = {index for chunk in own_chunks(total) for index in chunk}
        try:
            for record in again:
                if record["index"] in own:
                    file.append([self.ask_one(source, record["index"])])
        except ReaderUnavailable as error:
            if silent:
                raise
            logging.warning("items without an answer stay without: %s", error)

    def _ask_on(self, source: Any, path: Path, file: RecordFile, total: int) -> None:
        """Asks about the items that come next, in chunks that are done as a whole.

        A target that is silent in a whole chunk, and was never heard by any process, ends the work.
        """
        heard = self._heard(file.records(total))
        pending = [
            chunk for chunk in own_chunks(total) if any(index not in file for index in chunk)
        ]
        done = 0
        progress = Progress(sum(map(len, pending)), what=f"{self.name} item")
        for chunk in pending:
            for part in read_parts(source, chunk):
                done += len(part)
                if all(item.number in file for item in part):
                    continue
                new = [record for record in self.ask(part) if record["index"] not in file]
                file.append(new)
                heard |= self._heard(new)
                progress.update(done)
                check_others(path)
            if len(chunk) == CHUNK and len(heard) < len(self.targets):
                self._check_heard(known_records(path))

    def _heard(self, records: Sequence[Record]) -> set[str]:
        """The targets that have said anything, about any item."""
        return {
            target.name
            for target in self.targets
            for record in records
            if any(
                reply["text"] for reply in record.get("replies", {}).get(target.name, {}).values()
            )
        }

    def _check_heard(self, records: Sequence[Record]) -> None:
        """Checks that every target has said something.

        Raises:
            ReaderUnavailable: one has not, and 0% would be the score of nothing.
        """
        heard = self._heard(records)
        readable = [record for record in records if "unreadable" not in record]
        for target in self.targets:
            if readable and target.name not in heard:
                replies = [
                    r for record in readable for r in record["replies"][target.name].values()
                ]
                kinds = collections.Counter(reply.get("failure", EMPTY) for reply in replies)
                failure, count = kinds.most_common(1)[0]
                raise ReaderUnavailable(
                    f"{target.name} has said nothing in {len(replies)} replies, {count} of them: "
                    f"{failure}"
                )

    def ask_one(self, source: Any, index: int) -> Record:
        """The record of an item."""
        (record,) = self.ask([read_item(source, index)])
        return record

    def ask(self, items: Sequence[Item]) -> list[Record]:
        """Records of items: the croppers' boxes, and the replies under every condition."""
        records = [begin_record(item) for item in items]
        kept = [item for item in items if not item.unreadable]
        begun = [record for record in records if "unreadable" not in record]
        if not kept:
            return records
        for name in self.croppers:
            self._propose(name, kept, begun)
        for record in begun:
            record["boxes"] = self.conditions.boxes(record["index"], record["boxes"])
        each = ahead(lambda i: self._asked(kept[i], begun[i]), range(len(kept)))
        # Items take turns, so that one that a server fails on is not many failures in a row.
        turns = [pair for questions in each for pair in enumerate(questions)]
        asked = [question for _, question in sorted(turns, key=lambda pair: pair[0])]
        for target in self.targets:
            self._answer(target, asked, begun)
        return records

    def _propose(self, name: str, items: Sequence[Item], records: Sequence[Record]) -> None:
        """Asks a cropper for boxes, and writes them into the records."""
        cropper = self.croppers[name]
        clock = Clock(cropper)
        proposals = propose(cropper, items, confidence=self.tradeoffs)
        clock.stop(f"propose/{name}", records)
        for item, record, proposal in zip(items, records, proposals, strict=True):
            record["boxes"][name] = proposal.boxes
            if self.tradeoffs and proposal.confidence is not None:
                sure = record.setdefault("confidence", {})
                sure[name] = float(f"{proposal.confidence:.{DIGITS}g}")
            if hasattr(cropper, "tokens_of"):
                tokens = cropper.tokens_of(*item.image.shape[:2])
                record["image_tokens"][f"propose/{name}"] = tokens

    def _asked(self, item: Item, record: Record) -> list[Asked]:
        """What targets are asked about an item; what shows the same is asked once."""
        question = self.benchmark.ask(item.example)
        asked: dict[Any, Asked] = {}
        for condition in [*self.conditions.without_box, *record["boxes"]]:
            boxes = boxes_of(record["boxes"].get(condition, []))
            alone = condition if condition in self.conditions.without_box else NO_CROP
            shown = (self._stage(condition), *map(tuple, boxes)) if boxes else (alone,)
            if shown not in asked:
                pictures = shown_pictures(item.image, condition, record["boxes"])
                asked[shown] = Asked(record, [], pictures, question, item.example)
            asked[shown].conditions.append(condition)
        return list(asked.values())

    def _stage(self, condition: str) -> str:
        """What is asked and timed apart: "", or a condition's own name."""
        apart = self.tradeoffs and condition in (NO_CROP, *self.croppers)
        return condition if apart else ""

    def _answer(self, target: Reader, asked: Sequence[Asked], records: Sequence[Record]) -> None:
        """Asks a target under all conditions at once, and writes its replies into the records.

        So a reader that can share a picture between questions reads each whole picture once.
        Stages are asked one after the other.
        """
        for record in records:
            in_order = dict.fromkeys([*self.conditions.without_box, *record["boxes"]])
            record["replies"][target.name] = in_order
        stages: dict[str, list[Asked]] = {}
        for row in asked:
            stages.setdefault(self._stage(row.conditions[0]), []).append(row)
        for stage, rows in stages.items():
            clock = Clock(target)
            sure = target.name in self.confident
            replies = replies_of(target, rows, likelihood=self.benchmark.likelihood, sure=sure)
            clock.stop("/".join(["answer", target.name, *filter(None, [stage])]), records)
            for row, reply in zip(rows, replies, strict=True):
                self._write(target, row, reply)

    def _write(self, target: Reader, row: Asked, reply: Reply) -> None:
        """Writes a reply into the record of its item, under all its conditions."""
        scored = self._scored(reply, row.example)
        nats = reply.nats if target.name in self.confident else None
        if nats is not None and math.isfinite(nats):
            scored["log_prob"] = round(nats, DIGITS)
        row.record["replies"][target.name] |= dict.fromkeys(row.conditions, scored)
        if hasattr(target, "image_tokens") and not reply.unanswered:
            tokens = target.image_tokens([row.pictures])
            for condition in row.conditions:
                row.record["image_tokens"][f"answer/{target.name}/{condition}"] = tokens

    def _scored(self, reply: Reply, example: Example) -> dict[str, Any]:
        """A reply and its scores, as records have them."""
        scores: dict[str, float | None] = {
            metric: 0.0 if reply.failure else SCORERS[metric].score(reply.text, example)
            for metric in self.benchmark.metrics
        }
        if reply.unanswered:  # which says nothing of the pictures
            scores = dict.fromkeys(scores)
        scored: dict[str, Any] = {"text": reply.text, "scores": scores}
        return scored | {"failure": reply.failure} if reply.failure else scored


@contextlib.contextmanager
def _saying_where(path: Path, total: int) -> Iterator[None]:
    """Says of a target that answers nothing where the records are that there are."""
    try:
        yield
    except ReaderUnavailable as error:
        known = {record["index"] for record in known_records(path)} & set(range(total))
        raise ReaderUnavailable(
            f"{error}. Of {total} items, {len(known)} are in {path}: the same command goes on from "
            "there"
        ) from error


def _unanswered(record: Mapping[str, Any]) -> bool:
    """Whether something kept a target from answering the item."""
    by_target = record.get("replies", {}).values()
    failures = (
        reply.get("failure", "") for by_condition in by_target for reply in by_condition.values()
    )
    return any(Reply("", failure).unanswered for failure in failures)


def describe(model: Any) -> dict[str, Any]:
    """What a model's replies depend on: input size and digest of its weights, where it has any.

    Args:
        model: a cropper, or a reader with its `settings`.
    """
    described: dict[str, Any] = {"kind": type(model).__name__}
    if hasattr(model, "params"):
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(model.params):
            digest.update(np.asarray(leaf).tobytes())
        described |= {"longest_edge": model.longest_edge, "weights": digest.hexdigest()[:16]}
    return described | getattr(model, "settings", {})
