# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Frozen targets that answer questions about a picture and a crop of it, whatever they are.

target = open_target("rapidocr:v4@256")
(reply,) = target.answer([[picture, crop]], ["What is the total amount on the receipt?"])
"""

import asyncio
import base64
import concurrent.futures
import email.utils
import hashlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from absl import logging
from PIL import Image

from cropvlm_jax import api
from cropvlm_jax import boxes as box_lib
from cropvlm_jax.data import images as image_lib
from cropvlm_jax.models.qwen2_5_vl import QwenConfig
from cropvlm_jax.models.smolvlm import SmolVLMConfig

Pictures = Sequence[np.ndarray]

# Kinds of failure that are the target's own doing: it saw the question and gave no answer.
EMPTY, REFUSAL = "empty", "refusal"
CACHE = "~/.cache/cropvlm_jax/replies"
ANSWER_BRIEFLY = "Answer the question using a single word or phrase."
PACKAGES = {  # of OCR engines
    "rapidocr:v4": ("rapidocr-onnxruntime", "onnxruntime"),
    "rapidocr:v6": ("rapidocr", "onnxruntime"),
}
KINDS = ("vlm", "openai", "rapidocr", "tesseract")  # of targets, before the ":" of their names


class Reply(NamedTuple):
    """What a target said.

    Attributes:
        text: the answer, "" where there is none.
        failure: why there is none; "" where there is one.
    """

    text: str
    failure: str = ""

    @property
    def kind(self) -> str:
        """The failure without its particulars: "empty", "refusal", "timeout", "HTTP 500" ..."""
        return self.failure.partition(":")[0]

    @property
    def unanswered(self) -> bool:
        """Whether something kept the target from answering: it says nothing of the pictures."""
        return bool(self.failure) and self.kind not in (EMPTY, REFUSAL)


class Target(Protocol):
    """A frozen reader of pictures.

    Some can do more, and have `log_likelihood(images, questions, answers)`, float `[n]` in nats,
    summed over an answer's tokens, and `image_tokens(images)`, how many tokens all these pictures
    take together.

    Attributes:
        name: for reports.
    """

    name: str

    def answer(self, images: Sequence[Pictures], questions: Sequence[str]) -> list[Reply]:
        """Answers, one a question; an item that failed is a reply that says so.

        Args:
            images: of each question, the picture or the picture and the crop, uint8 RGB
                `[H, W, 3]` of any size.
            questions: the questions.
        """
        ...


class VLM:
    """A model of ours (`api.Target`).

    Attributes:
        name: of the model.
        settings: what replies depend on, for reports and records.
    """

    def __init__(self, model: api.Target, name: str):
        """Wraps a loaded model."""
        self.model, self.name = model, name
        shape = hashlib.sha256(repr(model.source.config).encode()).hexdigest()[:16]
        self.settings = {"config": shape}

    def answer(self, images: Sequence[Pictures], questions: Sequence[str]) -> list[Reply]:
        """Greedy answers, as `Target.answer`."""
        texts = self.model.answer(images, questions)
        return [_said(text) for text in texts]

    def log_likelihood(
        self, images: Sequence[Pictures], questions: Sequence[str], answers: Sequence[str]
    ) -> np.ndarray:
        """Log-likelihoods of answers, fp32 `[n]`, in nats, summed over tokens and the end token."""
        return self.model.log_likelihood(images, questions, answers)

    def answer_tokens(self, answers: Sequence[str]) -> np.ndarray:
        """Tokens that `log_likelihood` sums over, the end token included, int `[n]`."""
        spans = [self.model.prompts.answer("?", 1, answer).completion for answer in answers]
        return np.array([span.stop - span.start for span in spans])

    def image_tokens(self, images: Sequence[Pictures]) -> int:
        """Tokens that all these pictures take together."""
        pictures = [picture for some in images for picture in some]
        return sum(self._tokens_of(*picture.shape[:2]) for picture in pictures)

    def _tokens_of(self, height: int, width: int) -> int:
        source = self.model.source
        if isinstance(source.config, QwenConfig):
            limits = source.config.limits
            size = box_lib.smart_resize(
                height, width, limits.factor, limits.min_pixels, limits.max_pixels
            )
            return size[0] * size[1] // limits.factor**2
        if isinstance(source.config, SmolVLMConfig):
            rows, columns = image_lib.grid(height, width, source.tile_size, self.model.longest_edge)
            return (rows * columns + 1) * source.config.image_seq_len
        return source.config.image_seq_len


# Chat endpoints -----------------------------------------------------------------------------------


class ChatEndpoint:
    """Any model behind an OpenAI-compatible chat endpoint: GPT-4.1 nano, vLLM, llama.cpp ...

    Requests that meet a limit (429), a failing server (5xx), a timeout or a broken body are sent
    again, later each time. Replies are kept on disk by the content of their request, so that a run
    that is started again asks for nothing twice. Keys are neither logged nor kept.

    Attributes:
        name: the model, and the pictures' size where it is limited.
        settings: as of `VLM`.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        longest_edge: int | None = None,
        max_tokens: int = 64,
        concurrency: int = 8,
        timeout: float = 60.0,
        attempts: int = 6,
        backoff: float = 1.0,
        cache: str | os.PathLike = CACHE,
    ):
        """Prepares the client; nothing is sent yet.

        Args:
            model: as the server names it.
            base_url: up to and including "/v1"; None takes the environment's OPENAI_BASE_URL, and
                OpenAI's own where there is none.
            api_key: None takes the environment's OPENAI_API_KEY; local servers need none.
            longest_edge: pixels that larger pictures' longest sides are reduced to; None sends them
                as they are.
            max_tokens: longest reply.
            concurrency: requests under way at once.
            timeout: seconds from sending a request to the last byte of its reply.
            attempts: requests sent for an item before it is given up.
            backoff: seconds before the second one, twice as long before the third, and so on, up
                to 60, unless the server says when. Half of it is random, so that items that failed
                together do not come back together.
            cache: folder of the replies.

        Raises:
            ImportError: the client is not installed.
            ValueError: there is no key for OpenAI's own endpoint.
        """
        try:
            import openai
        except ImportError as error:
            raise ImportError(
                "chat endpoints take the openai client: pip install 'cropvlm-jax[targets]'"
            ) from error
        base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        key = api_key or os.environ.get("OPENAI_API_KEY")
        if not key and not base_url:
            raise ValueError(
                "set OPENAI_API_KEY to your key, or OPENAI_BASE_URL to the endpoint of a local "
                "server, which needs none"
            )
        self._openai, self._key = openai, key or "none"
        # The client's own timeout bounds each silence: of a server that trickles, there is no end.
        self._client = openai.AsyncOpenAI(
            api_key=self._key, base_url=base_url, timeout=None, max_retries=0
        )
        self._loop, self.timeout = asyncio.new_event_loop(), timeout
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.model, self.longest_edge, self.max_tokens = model, longest_edge, max_tokens
        self.name = model + (f"@{longest_edge}" if longest_edge else "")
        self.concurrency, self.attempts, self.backoff = concurrency, attempts, backoff
        self.cache = Path(cache).expanduser()
        address = self._client.base_url.copy_with(userinfo=b"", query=None)
        self.settings = {"base_url": str(address), "max_tokens": max_tokens, "says": ANSWER_BRIEFLY}

    def answer(self, images: Sequence[Pictures], questions: Sequence[str]) -> list[Reply]:
        """Answers, as `Target.answer`.

        Raises:
            RuntimeError: the server refuses every request alike: a wrong key or an unknown model.
        """
        with concurrent.futures.ThreadPoolExecutor(self.concurrency) as pool:
            tasks = [
                pool.submit(self._answer, *item) for item in zip(images, questions, strict=True)
            ]
            try:
                replies = [task.result() for task in tasks]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        failed = [reply for reply in replies if reply.failure]
        if failed:
            logging.warning(
                "%s: no answer to %d of %d questions, the first: %s",
                *(self.name, len(failed), len(replies), failed[0].failure),
            )
        return replies

    def _answer(self, pictures: Pictures, question: str) -> Reply:
        """The reply to one item, from the disk if it has been given before."""
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": _data_url(picture, self.longest_edge)}}
            for picture in pictures
        ]
        content.append({"type": "text", "text": f"{question}\n{ANSWER_BRIEFLY}"})
        request = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
        }
        told = json.dumps([str(self._client.base_url), request], sort_keys=True)
        digest = hashlib.sha256(told.encode()).hexdigest()
        path = self.cache / digest[:2] / f"{digest}.json"
        try:
            return Reply(**json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            pass  # not there, or not to be read: it is written anew
        reply = self._ask(request)
        if not reply.unanswered:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
            part.write_text(json.dumps(reply._asdict()), encoding="utf-8")
            part.replace(path)  # at once, so that no other process reads half of it
        return reply

    def _ask(self, request: dict[str, Any]) -> Reply:
        """Sends a request until it is answered or given up."""
        failure, pause = "", 0.0
        for attempt in range(self.attempts):
            time.sleep(pause)
            pause = min(self.backoff * 2**attempt, 60.0) * random.uniform(0.5, 1.0)
            try:
                return _read(self._send(request))
            except (
                self._openai.AuthenticationError,
                self._openai.PermissionDeniedError,
                self._openai.NotFoundError,
            ) as error:
                raise RuntimeError(f"{self.name} at {self._client.base_url}: "
                                   f"{self._said_by(error)}") from None  # fmt: skip
            except self._openai.APIStatusError as error:
                failure = self._said_by(error)
                if error.status_code < 500 and error.status_code not in (408, 409, 429):
                    break  # the same request would fail again
                pause = max(pause, _retry_after(error.response.headers.get("retry-after")))
            except TimeoutError:
                failure = f"timeout: no answer within {self.timeout} s"
            except self._openai.APIConnectionError as error:
                failure = self._hidden(f"connection: {error.__cause__ or error}")
            except (
                ValueError, TypeError, AttributeError, LookupError, self._openai.APIError
            ) as error:  # fmt: skip
                failure = self._hidden(f"broken body: {error}")
            logging.log_every_n_seconds(
                logging.INFO, "%s: attempt %d of %d: %s", 10,
                *(self.name, attempt + 1, self.attempts, failure),
            )  # fmt: skip
        return Reply("", failure)

    def _send(self, request: dict[str, Any]) -> Any:
        """The completion, or a TimeoutError; called from several threads."""
        reply = self._client.chat.completions.create(**request)
        return asyncio.run_coroutine_threadsafe(
            asyncio.wait_for(reply, self.timeout), self._loop
        ).result()

    def _said_by(self, error: Any) -> str:
        return self._hidden(f"HTTP {error.status_code}: {error.message}")

    def _hidden(self, text: str) -> str:
        """The first words of a message; servers like to repeat the key they were given."""
        return " ".join(text.replace(self._key, "***").split())[:200]


def _read(completion: Any) -> Reply:
    """What a completion says; raises where it is none."""
    choice = completion.choices[0]
    message = choice.message
    if message.refusal or choice.finish_reason == "content_filter":
        return Reply("", f"{REFUSAL}: {message.refusal or 'content filter'}")
    if message.content is not None and not isinstance(message.content, str):
        raise ValueError(f"the content is {message.content!r:.80}, not text")
    return _said(message.content or "")


def _retry_after(header: str | None) -> float:
    """Seconds to wait, at most 120: the header has seconds or a date (RFC 9110, 10.2.3)."""
    if not header:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), 120.0)


def _data_url(picture: np.ndarray, longest_edge: int | None) -> str:
    if longest_edge:
        picture = image_lib.shrink_to_fit(picture, longest_edge, longest_edge)
    return "data:image/png;base64," + base64.b64encode(_png(picture)).decode()


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def _said(text: str) -> Reply:
    text = text.strip()
    return Reply(text, "" if text else EMPTY)


# OCR readers --------------------------------------------------------------------------------------


class OCRReader:
    """An OCR engine as a target: it answers any question with all the text that it can read.

    It reads each picture at its input size, whatever there is on it, so that a crop of the original
    pixels shows it what the whole picture does not. What it read of a picture is remembered.

    Attributes:
        name: the engine and its input size.
        settings: as of `VLM`: the versions of the engine.
    """

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

    def answer(self, images: Sequence[Pictures], questions: Sequence[str]) -> list[Reply]:
        """The text of the picture, and below it that of the crop, as `Target.answer`."""
        if len(images) != len(questions):
            raise ValueError(f"{len(images)} images but {len(questions)} questions")
        # Groups share their picture: it is told apart by its pixels, and that once.
        distinct = {id(picture): picture for pictures in images for picture in pictures}
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
        for pictures in images:
            parts = [known[digests[id(picture)]] for picture in pictures]
            broken = [part for part in parts if part.unanswered]
            replies.append(broken[0] if broken else _said("\n".join(part.text for part in parts)))
        return replies

    def _reply(self, picture: np.ndarray) -> Reply:
        if self.longest_edge:
            height, width = image_lib.resized(picture.shape[0], picture.shape[1], self.longest_edge)
            resized = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
            picture = np.asarray(resized)
        try:
            return _said(self._read(picture))
        except Exception as error:  # an engine's, whatever it is, must not end a run
            logging.warning("%s: %s", self.name, error)
            return Reply("", f"engine: {error}")


def _versions(engine: str) -> dict[str, str]:
    """What an engine's reading depends on, by package or program."""
    if engine == "tesseract" and (program := shutil.which(engine)):
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60)
        return {engine: (said.stdout or said.stderr).partition("\n")[0].strip()}
    return {package: version(package) for package in PACKAGES.get(engine, ())}


def _digest(picture: np.ndarray) -> bytes:
    shape = repr(picture.shape).encode()
    return hashlib.sha256(shape + np.ascontiguousarray(picture).tobytes()).digest()


def rapidocr(models: str) -> Callable[[np.ndarray], str]:
    """RapidOCR's reader of PP-OCR models, which come with the package.

    Its detector works at the size of the picture: by default it would enlarge small ones.

    Args:
        models: "v4" (mobile) or "v6" (small).

    Raises:
        ImportError: the package is not installed.
        ValueError: others.
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
        raise ImportError(
            f"rapidocr:{models} takes RapidOCR: pip install 'cropvlm-jax[targets]' ({error})"
        ) from error

    def read(picture: np.ndarray) -> str:
        return "\n".join(getattr(v6(_bgr(picture)), "txts", None) or ())

    return read


def _bgr(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(picture[..., ::-1])


def tesseract() -> Callable[[np.ndarray], str]:
    """The reader of the installed `tesseract`, which takes a picture for one block of text.

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
            command, input=_png(picture), capture_output=True, env=environment, timeout=120
        )
        if done.returncode:
            raise RuntimeError(f"tesseract: {done.stderr.decode(errors='replace').strip()[-200:]}")
        return done.stdout.decode(errors="replace")

    return read


# By name ------------------------------------------------------------------------------------------


def is_black_box(spec: str) -> bool:
    """Whether `open_target` takes `spec` for other than the plain name of a VLM of ours."""
    return bool(re.match(rf"({'|'.join(KINDS)})([:@]|$)", spec))


def open_target(spec: str, base_url: str | None = None, **options: Any) -> Target:
    """Opens a target by its name on the command line.

    Args:
        spec: a folder, bundled model or hub id of a VLM ("zoom_digits/target", or
            "vlm:zoom_digits/target"); "openai:MODEL", at `base_url`; "rapidocr:v4", "rapidocr:v6",
            "tesseract". Then, optionally, "@" and the pixels of pictures' longest sides.
        base_url: of a chat endpoint, where the environment's OPENAI_BASE_URL does not say it.
        **options: of a VLM, `api.Target.from_pretrained`: dtype, mesh.

    Raises:
        FileNotFoundError: the model or program is not there.
        ImportError: a package is not installed.
        ValueError: there is no such target.
    """
    found = re.fullmatch(r"(?:(\w+):)?([^:@].*?)(?:@(\d+))?", spec)
    if not found or spec.endswith(":"):
        raise ValueError(f"{spec!r} names no target")
    kind, name, edge = found[1], found[2], int(found[3]) if found[3] else None
    if kind is None and name == "tesseract":
        return OCRReader(name, tesseract(), edge)
    if kind == "rapidocr":
        return OCRReader(f"rapidocr:{name}", rapidocr(name), edge)
    if kind == "openai":
        return ChatEndpoint(name, base_url=base_url, longest_edge=edge)
    if kind not in (None, "vlm"):
        raise ValueError(f"{spec!r}: {kind!r} is none of {', '.join(KINDS)}")
    suffix = f"@{edge}" if edge else ""
    return VLM(api.Target.from_pretrained(name, longest_edge=edge, **options), name + suffix)
