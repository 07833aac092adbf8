# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The data sets as TensorFlow Datasets in ArrayRecord files: quick random access, no tensorflow."""

import functools
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from cropvlm_jax.data import faults
from cropvlm_jax.data.source import Source
from cropvlm_jax.data.sources import open_source
from cropvlm_jax.pixels import host

try:
    import tensorflow_datasets as tfds
except ImportError as error:
    raise ImportError(
        "prepared data sets need TensorFlow Datasets: "
        "pip install tensorflow-datasets array_record importlib_resources"
    ) from error

SHARD = 128  # examples: TFDS keeps a shard's pictures in memory while it writes them


class Builder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes the data set of the same name in `data.sources`; its folder is TFDS's `manual_dir`.

    Examples keep their order. One whose picture cannot be decoded is left out, counted and named in
    the log and in `info.metadata["skipped"]`, together with what the source left out, and its boxes
    that could not be used are in `info.metadata["lost_boxes"]`;
    `info.metadata["folder"]` is where they come from, and `info.metadata["fingerprints"]` are those
    of the sources.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The data set's folder; cropvlm_jax.data says what it holds."
    SPLITS: tuple[str, ...] = ("train", "val", "test")

    def __init__(
        self, *, splits: Sequence[str] = (), file_format: str | None = None, **options: Any
    ):
        """Makes a builder.

        Args:
            splits: The splits to write, by default all that the folder has.
            file_format: As TFDS takes it.
            **options: What else TFDS's builders take.
        """
        super().__init__(file_format=file_format or "array_record", **options)
        self._splits = tuple(splits)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {
            "example_id": text,
            "image": tfds.features.Image(),  # encoded, as in the data set
            "question": text,
            "answers": tfds.features.Sequence(text),
            "box": tfds.features.Sequence(np.int32),  # percent; empty where unknown
            "options": tfds.features.Sequence(text),
            "label": text,
            "category": text,
            "cycle_category": text,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.name}, as cropvlm_jax reads it.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(skipped={}, lost_boxes={}, fingerprints={}),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Callable[[], Iterator[tuple[int, dict[str, Any]]]]]]:
        """Opens the splits; called by TFDS for what to write, `SHARD` examples at a time."""
        self.info.metadata["folder"] = os.path.realpath(dl_manager.manual_dir)
        sources = {}
        for split in self._splits or self.SPLITS:
            try:
                sources[split] = open_source(self.name, dl_manager.manual_dir, split)
            except FileNotFoundError as error:
                if self._splits:
                    raise
                logging.info("%s: no split %s: %s", self.name, split, error)
        fingerprints = {split: source.fingerprint for split, source in sources.items()}
        self.info.metadata["fingerprints"] = fingerprints
        lost_boxes = {split: source.lost_boxes for split, source in sources.items()}
        self.info.metadata["lost_boxes"] = lost_boxes
        return {
            split: [
                functools.partial(
                    self._examples, split, source, range(len(source))[start : start + SHARD]
                )
                for start in range(0, len(source), SHARD)
            ]
            for split, source in sources.items()
        }

    def _examples(
        self, split: str, source: Source, indices: range
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """The usable examples of a shard, with their indices."""
        left_out = self.info.metadata["skipped"].setdefault(split, list(source.skipped))
        for index in indices:
            logging.log_every_n_seconds(
                logging.INFO, "%s: %d of %d", 10, source.name, index, len(source)
            )
            try:
                example = source[index]
                picture = _encoded(example["image"])
                host.to_rgb(picture)
            except (OSError, ValueError) as error:
                left_out.append(f"{source.name_of(index)}: {error}")
                continue
            yield index, _ABSENT | example | {"image": io.BytesIO(picture)}
        if indices.stop == len(source):
            total = len(source) + len(source.skipped)
            if len(left_out) == total:
                raise ValueError(f"{source.name}: no usable example: {left_out[0]}")
            faults.log(f"{source.name}: {len(left_out)} of {total} examples left out", left_out)


_ABSENT: dict[str, Any] = {
    "box": [],
    "options": [],
    "label": "",
    "category": "",
    "cycle_category": "",
}


class Textvqa(Builder):
    """TextVQA."""


class Docvqa(Builder):
    """DocVQA."""


class Infographicvqa(Builder):
    """InfographicVQA."""


class Stvqa(Builder):
    """ST-VQA."""


class Sroie(Builder):
    """SROIE receipts."""


class Jsonl(Builder):
    """Anybody's pictures and questions."""


class Pdfs(Builder):
    """Questions about PDF pages."""


class Pages(Builder):
    """Questions about the layout of PDF pages."""


class Vstar(Builder):
    """V* Bench."""

    SPLITS = ("test",)


class Hrbench4k(Builder):
    """HR-Bench at 4K."""

    name = "hrbench_4k"
    SPLITS = ("test",)


class Hrbench8k(Builder):
    """HR-Bench at 8K."""

    name = "hrbench_8k"
    SPLITS = ("test",)


def prepare(
    name: str, folder: str | os.PathLike, data_dir: str | os.PathLike, splits: Sequence[str]
) -> None:
    """Writes splits of a data set below `data_dir`; what is there already is kept as it is.

    Args:
        name: One of `data.sources.NAMES`.
        folder: The folder that the data set is in.
        data_dir: The folder in which TFDS keeps prepared data sets.
        splits: The splits to write.

    Raises:
        FileNotFoundError: The folder does not hold the data set.
        ValueError: Name or split is unknown, no picture is usable, or other splits or another
            folder have been prepared already.
    """
    if not Path(folder).is_dir() or not any(Path(folder).iterdir()):
        raise FileNotFoundError(f"{folder} is no folder, or empty")
    builder = _builder(name, data_dir, splits)
    if builder.info.splits:
        origin = builder.info.metadata.get("folder")
        if origin != os.path.realpath(folder):
            raise ValueError(
                f"{builder.data_path} was prepared from {origin}, not from {folder}: delete it, or "
                "take another data_dir"
            )
        if missing := set(splits) - set(builder.info.splits):
            raise ValueError(
                f"{builder.data_path} holds the splits {', '.join(builder.info.splits)} without "
                f"{', '.join(sorted(missing))}: delete it to prepare all of them"
            )
        logging.info("%s is there already, and kept as it is", builder.data_path)
        return
    manual = tfds.download.DownloadConfig(manual_dir=folder)
    builder.download_and_prepare(download_config=manual)


def open_prepared(name: str, data_dir: str | os.PathLike, split: str) -> Source:
    """Opens what `prepare` wrote: the source's examples, pictures as the bytes of their files.

    Raises:
        FileNotFoundError: The data set has not been prepared.
        ValueError: The data set was prepared without this split.
    """
    builder = _builder(name, data_dir)
    if not builder.info.splits:
        raise FileNotFoundError(f"{name} has not been prepared in {data_dir}: run cropvlm prepare")
    if split not in builder.info.splits:
        raise ValueError(f"{name} was prepared with {', '.join(builder.info.splits)}, not {split}")
    encoded = {"image": tfds.decode.SkipDecoding()}
    records = builder.as_data_source(split, decoders=encoded)
    skipped = builder.info.metadata["skipped"][split]
    lost_boxes = builder.info.metadata.get("lost_boxes", {}).get(split, ())
    rows, read = _Rows(records, range(len(records))), functools.partial(_picture, records)
    return Source(f"{name}/{split}", rows, read, skipped, lost_boxes)


def _builder(name: str, data_dir: str | os.PathLike, splits: Sequence[str] = ()) -> Builder:
    builders = {builder.name: builder for builder in Builder.__subclasses__()}
    if name not in builders:
        raise ValueError(f"unknown data set {name!r}: use one of {', '.join(builders)}")
    return builders[name](data_dir=data_dir, splits=splits)


class _Rows(Sequence):
    """Examples of a TFDS data source whose `image` is their index, for `_picture`."""

    def __init__(self, records: Any, indices: range):
        self._records, self._indices = records, indices

    @property
    def fingerprint(self) -> str:
        """What the source had when it was prepared: reading examples would read their pictures."""
        whole = self._records.dataset_info.metadata["fingerprints"][self._records.split]
        return f"{whole} {self._indices}"

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, place: Any) -> Any:
        index = self._indices[place]
        if isinstance(index, range):
            return _Rows(self._records, index)
        record = self._records[index]
        example = {
            "example_id": record["example_id"].decode(),
            "image": index,
            "question": record["question"].decode(),
            "answers": [answer.decode() for answer in record["answers"]],
            "box": tuple(int(edge) for edge in record["box"]),
            "options": [option.decode() for option in record["options"]],
            "label": record["label"].decode(),
            "category": record["category"].decode(),
            "cycle_category": record["cycle_category"].decode(),
        }
        return {key: value for key, value in example.items() if value or key not in _ABSENT}


def _picture(records: Any, index: int) -> bytes:
    return records[index]["image"]


def _encoded(image: Any) -> bytes:
    """A picture as the bytes of a file; pixels become PNG."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        return file.getvalue()
    return Path(image).read_bytes()
