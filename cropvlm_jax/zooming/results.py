# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The results in a folder: a line of JSON a question, and the files that belong to it.

A line is written after its files. So a process that is killed at any moment leaves whole results,
and perhaps files or a piece of a line that will be written again.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from cropvlm_jax import json_lines
from cropvlm_jax.zooming.questions import RESULTS, Question

Record = json_lines.Row

CROPS, THUMBNAILS = "crops", "thumbnails"
FAILURE = "failure"  # key of a record: why it lacks something


def file_stem(question_id: str) -> str:
    """The name of a question's files without a suffix: readable, and no other question's."""
    readable = re.sub(r"[^\w.-]+", "_", question_id)[-40:].strip("._-")
    digest = hashlib.sha256(question_id.encode("utf-8", "backslashreplace")).hexdigest()[:12]
    return f"{readable}-{digest}"


class Results:
    """The results of questions in a folder that no other process writes to.

    Attributes:
        folder: of the results.
        questions: all that are asked, in their order.
    """

    def __init__(self, folder: Path, questions: Sequence[Question]):
        """Takes over what earlier processes have done.

        A result that lacks something, or whose crop is gone, is taken out of the file, to be made
        again.

        Raises:
            ValueError: the file is damaged, or is of other questions.
        """
        self.folder, self.questions, self._file = folder, questions, folder / RESULTS
        (folder / CROPS).mkdir(parents=True, exist_ok=True)
        (folder / THUMBNAILS).mkdir(exist_ok=True)
        known = json_lines.read(self._file) if self._file.exists() else []
        for number, record in enumerate(known, 1):
            if not {"id", "image", "question"} <= record.keys():
                raise ValueError(f"line {number} of {self._file} is damaged: it holds no result")
        done = [record for record in known if self._is_done(record)]
        self._by_id = {record["id"]: record for record in done}
        self._check()
        json_lines.replace(self._file, self._by_id.values())

    def __len__(self) -> int:
        """How many of the questions have a result."""
        return len(self.records())

    def records(self) -> list[Record]:
        """The results in the order of the questions, as many as there are."""
        return [self._by_id[q.id] for q in self.questions if q.id in self._by_id]

    def pending(self) -> list[int]:
        """The indices of the questions without a result."""
        return [index for index, q in enumerate(self.questions) if q.id not in self._by_id]

    def append(self, new: Sequence[Record]) -> None:
        """Writes results of questions that have none yet; their files are there."""
        with self._file.open("ab") as file:
            file.write(json_lines.encode(new))
        self._by_id |= {record["id"]: record for record in new}

    def _is_done(self, record: Record) -> bool:
        """Whether nothing of a result is to be made again."""
        crops = record["crops"] if "crops" in record else [record.get("crop", "")]
        return FAILURE not in record and all((self.folder / crop).is_file() for crop in crops)

    def _check(self) -> None:
        """Checks that the results answer these questions.

        Raises:
            ValueError: one answers another question of the same id.
        """
        for question in self.questions:
            record = self._by_id.get(question.id)
            for key in ("image", "question"):
                if record and record[key] != getattr(question, key):
                    raise ValueError(
                        f"{self._file} has a result of {question.id} for the {key} "
                        f"{record[key]!r:.80}, which is {getattr(question, key)!r:.80} now: take "
                        "another folder, or set it back"
                    )
