# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""OCR engines as readers: they answer any question with all the text that they can read."""

import concurrent.futures
import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version

import numpy as np
from absl import logging
from PIL import Image

from cropvlm_jax.pixels import host
from cropvlm_jax.readers.base import Reply, reply_from
from cropvlm_jax.readers.inputs import Shown, as_arrays
from cropvlm_jax.readers.pictures import png

PACKAGES = {  # of OCR engines
    "rapidocr:v4": ("rapidocr-onnxruntime", "onnxruntime"),
    "rapidocr:v6": ("rapidocr", "onnxruntime"),
}


class OCRReader:
    """An OCR engine as a reader: it answers any question with all the text that it can read.

    It reads each picture at its input size, whatever there is on it, so that a crop of the original
    pixels shows it what the whole picture does not. What it read of a picture is remembered.

    Attributes:
        name: the engine and its input size.
        settings: the versions of the engine, for reports and records.
        transcribes: True, so that evaluations look for the answer in the reply.
    """

    transcribes = True
    REMEMBERED = 100_000  # pictures whose text is kept

    def __init__(
        self,
        name: str,
        read: Callable[[np.ndarray], str],
        longest_edge: int | None = None,
        workers: int | None = None,
    ):
        """Wraps an engine.

        Args:
            name: of it.
            read: reads a picture, uint8 RGB `[H, W, 3]`; may be called from several threads.
            longest_edge: pixels that pictures' longest sides are resized to, up or down; None
                reads them as they are.
            workers: pictures read at once; None takes the processor's cores.
        """
        self.name = name + (f"@{longest_edge}" if longest_edge else "")
        self.settings = _versions(name)
        self.longest_edge, self._read = longest_edge, read
        self._pool = concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count())
        self._texts: dict[bytes, Reply] = {}

    def answer(self, images: Sequence[Shown], questions: Sequence[str]) -> list[Reply]:
        """The text of the picture, and below it that of the crop, whatever the question.

        Args:
            images: of each question, a picture, or a list of the picture and crops of it.
            questions: the questions.
        """
        shown = as_arrays(images, questions)
        # Rollouts of a group share their picture, whose pixels are hashed only once.
        distinct = {id(picture): picture for pictures in shown for picture in pictures}
        digests = dict(zip(distinct, self._pool.map(_digest, distinct.values()), strict=True))
        unread = {
            digest: distinct[key] for key, digest in digests.items() if digest not in self._texts
        }
        read = dict(zip(unread, self._pool.map(self._reply, unread.values()), strict=True))
        known = self._texts | read
        # Only what was read well, and the oldest goes first.
        self._texts |= {digest: reply for digest, reply in read.items() if not reply.unanswered}
        while len(self._texts) > self.REMEMBERED:
            del self._texts[next(iter(self._texts))]
        replies = []
        for pictures in shown:
            parts = [known[digests[id(picture)]] for picture in pictures]
            broken = [part for part in parts if part.unanswered]
            replies.append(
                broken[0] if broken else reply_from("\n".join(part.text for part in parts))
            )
        return replies

    def _reply(self, picture: np.ndarray) -> Reply:
        """What the engine reads in one picture; a failure of the engine is a reply that says so."""
        if self.longest_edge:
            height, width = host.resized(picture.shape[0], picture.shape[1], self.longest_edge)
            resized = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
            picture = np.asarray(resized)
        try:
            return reply_from(self._read(picture))
        except Exception as error:  # an engine's, whatever it is, must not end a run
            logging.warning("%s: %s", self.name, error)
            return Reply("", f"engine: {error}")


def _versions(engine: str) -> dict[str, str]:
    """What an engine's reading depends on, by package or program."""
    if engine == "tesseract" and (program := shutil.which(engine)):
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60)
        return {engine: (done.stdout or done.stderr).partition("\n")[0].strip()}
    return {package: version(package) for package in PACKAGES.get(engine, ())}


def _digest(picture: np.ndarray) -> bytes:
    """Tells apart pictures of other pixels or another shape."""
    shape = repr(picture.shape).encode()
    return hashlib.sha256(shape + np.ascontiguousarray(picture).tobytes()).digest()


def rapidocr(models: str) -> Callable[[np.ndarray], str]:
    """RapidOCR with PP-OCR models, which come with the package.

    The detector is told to work at the size of the picture: by default it would enlarge small ones.

    Args:
        models: "v4" (mobile) or "v6" (small).

    Raises:
        ImportError: the package is not installed.
        ValueError: there are no such models.
    """
    if models not in ("v4", "v6"):
        raise ValueError(f"rapidocr:{models} is neither rapidocr:v4 nor rapidocr:v6")
    try:
        if models == "v4":
            import rapidocr_onnxruntime

            # One thread a picture: several are read at once, and sums keep their order.
            own = threading.local()  # an engine a thread: it keeps the limits of its last picture

            def read_v4(picture: np.ndarray) -> str:
                if not hasattr(own, "engine"):
                    own.engine = rapidocr_onnxruntime.RapidOCR(
                        det_limit_type="max", intra_op_num_threads=1, inter_op_num_threads=1
                    )
                lines = own.engine(_bgr(picture), use_cls=False)[0] or ()
                return "\n".join(line[1] for line in lines)

            return read_v4
        import rapidocr as rapidocr_3

        v6 = rapidocr_3.RapidOCR(
            params={
                "Det.limit_type": "max",
                "Det.limit_side_len": 2000,
                "Global.use_cls": False,
                "Global.log_level": "error",
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )
    except ImportError as error:
        needed = {
            "v4": "rapidocr-onnxruntime==1.4.4 (for Python 3.12 or earlier; or take rapidocr:v6)",
            "v6": "onnxruntime rapidocr==3.10.0",
        }
        raise ImportError(
            f"rapidocr:{models} takes RapidOCR ({error}): pip install {needed[models]}"
        ) from error

    def read(picture: np.ndarray) -> str:
        return "\n".join(getattr(v6(_bgr(picture)), "txts", None) or ())

    return read


def _bgr(picture: np.ndarray) -> np.ndarray:
    """A picture with its channels in the order that OpenCV and RapidOCR expect."""
    return np.ascontiguousarray(picture[..., ::-1])


def tesseract() -> Callable[[np.ndarray], str]:
    """The installed program `tesseract`, which is told to take a picture for one block of text.

    Raises:
        FileNotFoundError: it is not installed.
    """
    program = shutil.which("tesseract")
    if program is None:
        raise FileNotFoundError(
            "there is no program tesseract: apt-get install tesseract-ocr tesseract-ocr-eng, or "
            "brew install tesseract"
        )
    command = [program, "stdin", "stdout", "--psm", "6", "-l", "eng"]
    environment = os.environ | {"OMP_THREAD_LIMIT": "1"}  # pictures are read side by side

    def read(picture: np.ndarray) -> str:
        done = subprocess.run(
            command, input=png(picture), capture_output=True, env=environment, timeout=120
        )
        if done.returncode:
            raise RuntimeError(f"tesseract: {done.stderr.decode(errors='replace').strip()[-200:]}")
        return done.stdout.decode(errors="replace")

    return read
