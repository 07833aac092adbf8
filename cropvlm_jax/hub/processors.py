# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The processor's files of a model folder, as `transformers` reads and writes them.

Up to version 4 the image processor has a file of its own; since 5 it is a part of the processor's.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from cropvlm_jax.hub.files import read_json, write_json

FLAT = "preprocessor_config.json"
NESTED = "processor_config.json"
PROCESSORS = (FLAT, NESTED)


@dataclasses.dataclass(frozen=True)
class ProcessorFiles:
    """What a folder says of its processor.

    Attributes:
        images: the settings of the image processor.
        images_file: the file that they are in.
        processor: the other settings of the processor.
    """

    images: dict[str, Any]
    images_file: Path
    processor: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "ProcessorFiles":
        """Reads a folder as `transformers` does: a nested image processor replaces the flat file.

        Raises:
            ValueError: naming the file that is broken.
        """
        flat, processor = read_json(folder / FLAT), read_json(folder / NESTED)
        nested = processor.pop("image_processor", None)
        if nested is None:
            return cls(flat, folder / FLAT, processor)
        if not isinstance(nested, dict):
            raise ValueError(f"{folder / NESTED}: image_processor={nested!r} is no object")
        if differ := [key for key in flat if key in nested and flat[key] != nested[key]]:
            names = ", ".join(differ)
            logging.warning("%s: %s counts, and %s says otherwise: %s", folder, NESTED, FLAT, names)
        return cls(nested, folder / NESTED, processor)

    def write(self, folder: Path, images: Mapping[str, Any], processor: Mapping[str, Any]) -> None:
        """Writes both spellings, which say the same.

        Args:
            folder: an existing folder.
            images: settings of the image processor that replace those that were read.
            processor: other settings that do.
        """
        kept = {key: value for key, value in self.images.items() if value is not None}
        name = self.processor.get("processor_class", kept.pop("processor_class", None))
        label = {"processor_class": name} if name else {}
        written = {**kept, **images}
        written.pop("feature_extractor_type", None)  # the old name of its type
        write_json(folder / FLAT, written | label)
        write_json(
            folder / NESTED, self.processor | dict(processor) | label | {"image_processor": written}
        )
