# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What croppers win for frozen targets on a benchmark, with the controls that put it in proportion.

Every item is answered without a crop and with crops of several makes, all cut from the original
pixels: these are the conditions. A line of JSON an item is appended to a file of records, so that
an evaluation that was killed goes on where it stopped; the results are computed from the records.

Shape letters: n items, C conditions, K clusters, R resamples.
"""

import collections
import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import jax
import numpy as np
from absl import logging
from PIL import Image

from cropvlm_jax import geometry, scoring
from cropvlm_jax.data import sources
from cropvlm_jax.data.source import Example
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.pixels import host
from cropvlm_jax.progress import Progress
from cropvlm_jax.readers.base import REFUSAL, Reader, Reply

NO_CROP, CENTRE, RANDOM, UPSCALED, ORACLE = "no_crop", "centre", "random", "upscaled", "oracle"
CONTROLS = {
    NO_CROP: "the picture alone",
    CENTRE: "with a centre crop of the last cropper's width and height on this item",
    RANDOM: "with a crop of that width and height at a random place",
    UPSCALED: "with the whole picture again, twice as large (at most 4096 px)",
    ORACLE: "with the true box, where the data set knows it",
}
CHUNK = 32  # items that are worked on together, always the same ones
PIXELS = 2**26  # of the pictures in memory
MAX_UPSCALED = 4096  # px
INVALID = (0, 0, 0, 0)
RESAMPLES = 2000
_PACKAGES = ("cropvlm-jax", "jax", "flax", "numpy", "pillow", "tokenizers")


class Cropper(Protocol):
    """What says where to look; `api.CropVLM` is one."""

    def propose(self, images: Sequence[Any], questions: Sequence[str]) -> np.ndarray:
        """Percent boxes, int `[n, 4]`."""
        ...


# Benchmarks ---------------------------------------------------------------------------------------


class Metric(NamedTuple):
    """A score of a reply, 0..1, and what it is."""

    score: Callable[[str, Example], float]
    description: str


def _vqa(variant: scoring.VQAVariant) -> Callable[[str, Example], float]:
    return lambda reply, example: scoring.vqa_accuracy(reply, example["answers"], variant)


METRICS = {
    "vqa_evalai": Metric(
        _vqa("evalai"), "VQA accuracy, EvalAI's normalisation, mean over annotators (lmms-eval)"
    ),
    "vqa_vicrop": Metric(_vqa("vicrop"), "VQA accuracy, min(1, 0.3 * matches) (ViCrop)"),
    "vqa_official": Metric(
        _vqa("official"), "VQA accuracy of lower-cased replies (CropVLM's code for SmolVLM)"
    ),
    "anls": Metric(
        lambda reply, example: scoring.anls(reply, example["answers"]),
        "average normalised Levenshtein similarity, threshold 0.5 (lmms-eval)",
    ),
    "contains": Metric(
        lambda reply, example: scoring.contains(reply, example["answers"]),
        "whether an answer is in the reply, not as a part of a longer number or word",
    ),
    "exact": Metric(
        lambda reply, example: scoring.exact(reply, example["answers"]),
        "whether the reply is an answer, up to case, spaces and one final period",
    ),
    "vstar_letter": Metric(
        lambda reply, example: float(scoring.vstar_letter(reply) == example["label"]),
        "whether the reply names the right option's letter (lmms-eval's rules for V*)",
    ),
    "hrbench_letter": Metric(
        lambda reply, example: float(
            scoring.hrbench_letter(reply, example["options"]) == example["label"]
        ),
        "whether the reply names the right option by letter or text (lmms-eval's rules for "
        "HR-Bench, no judge model), mean over the cyclic orders",
    ),
    "likeliest": Metric(
        lambda reply, example: float(reply == example["answers"][0]),
        "whether the right option has the highest mean log-likelihood a token (V*'s own code)",
    ),
}


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A data set and how it is asked and scored.

    Attributes:
        source: one of `sources.NAMES`, or "zoom_digits".
        split: of it.
        metrics: names in `METRICS`, the one to report first.
        prompt: what the target is asked, with `{question}` and `{options}`; the target's own
            instruction follows, croppers get the question alone.
        likelihood: the target's answer is the likeliest of the options.
    """

    source: str
    split: str
    metrics: tuple[str, ...]
    prompt: str = "{question}"
    likelihood: bool = False

    def open(self, folder: str | os.PathLike | None, seed: int = 0) -> Any:
        """Opens the data set; raises as `sources.open_source`.

        Args:
            folder: where it is; zoom_digits needs none.
            seed: of the scenes of zoom_digits.
        """
        if self.source == "zoom_digits":
            return ZoomDigits(self.split, 10**6, seed)
        if folder is None:
            raise ValueError(f"{self.source} is read from a local folder: tell which")
        return sources.open_source(self.source, folder, self.split)

    def ask(self, example: Example) -> str:
        """The question as the target gets it."""
        letters = zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", example.get("options", ()), strict=False)
        options = "\n".join(f"{letter}. {option}" for letter, option in letters)
        return self.prompt.format(question=example["question"], options=options)


_VQA = ("vqa_evalai", "vqa_vicrop", "vqa_official")
_HR_PROMPT = "{question}\n{options}\nAnswer the option letter directly."
_VSTAR_PROMPT = (
    "{question}\n{options}\nAnswer with the option's letter from the given choices directly."
)
BENCHMARKS = {
    "zoom_digits": Benchmark("zoom_digits", "test", ("exact", "contains")),
    "textvqa": Benchmark("textvqa", "val", _VQA),
    "docvqa": Benchmark("docvqa", "val", ("anls",)),
    "infographicvqa": Benchmark("infographicvqa", "val", ("anls",)),
    "stvqa": Benchmark("stvqa", "val", ("anls",)),
    "vstar": Benchmark("vstar", "test", ("vstar_letter",), _VSTAR_PROMPT),
    "vstar_likelihood": Benchmark("vstar", "test", ("likeliest",), likelihood=True),
    "hrbench_4k": Benchmark("hrbench_4k", "test", ("hrbench_letter",), _HR_PROMPT),
    "hrbench_8k": Benchmark("hrbench_8k", "test", ("hrbench_letter",), _HR_PROMPT),
    "sroie": Benchmark("sroie", "test", ("contains", "anls")),
    "pdfs": Benchmark("pdfs", "test", ("contains", "anls")),
    "jsonl": Benchmark("jsonl", "test", ("exact", "contains", "anls")),
}


# Evaluating ---------------------------------------------------------------------------------------


def evaluate(
    name: str,
    source: Any,
    targets: Sequence[Reader],
    croppers: Mapping[str, Cropper],
    out: str | os.PathLike,
    *,
    expansions: Sequence[float] = (),
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Answers the items of a benchmark under all conditions.

    Conditions: `CONTROLS`, each cropper's box by its name, and these boxes and the true one
    expanded, such as "sft x4". Records are appended to `{name}.{digest}.jsonl`, whose digest is of
    the protocol and the models' weights: the same call goes on, another one begins anew.

    Args:
        name: of the benchmark, one of `BENCHMARKS`.
        source: its examples, from `Benchmark.open`.
        targets: answer; of different names.
        croppers: by name, the one to report last.
        out: folder for the records.
        expansions: factors of the boxes' areas besides 1.
        limit: only the first items.
        seed: of the random crops.

    Returns:
        What `summarise` says, and `records`, the name of their file.

    Raises:
        ValueError: no cropper, names that are not unique or taken, an item without answers, or a
            target without likelihoods where the benchmark is about them.
        OSError: another process works on the same evaluation.
    """
    benchmark = BENCHMARKS[name]
    if not croppers or not targets:
        raise ValueError("an evaluation takes at least one cropper and one target")
    names = [target.name for target in targets]
    if len(set(names)) < len(names):
        raise ValueError(f"targets need different names, got {', '.join(names)}")
    if taken := set(croppers) & set(CONTROLS):
        raise ValueError(f"croppers cannot be named {', '.join(sorted(taken))}: these are controls")
    for target in targets:
        if benchmark.likelihood and not hasattr(target, "answer_tokens"):
            raise ValueError(f"{name} is about likelihoods, which {target.name} does not tell")
    protocol = _protocol(name, benchmark, source, targets, croppers, expansions, seed)
    digest = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:8]
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    total = len(source) if limit is None else min(limit, len(source))
    _check_answers(source, total)
    with _open_records(out / f"{name}.{digest}.jsonl", protocol) as (file, records):

        def append(new: Sequence[dict[str, Any]]) -> None:
            file.write(b"".join(json.dumps(record).encode() + b"\n" for record in new))
            file.flush()

        done = len(records)
        for index, record in enumerate(records[:total]):
            if _unanswered(record):  # by a server that may be back
                item = [_read(source, index)]
                (records[index],) = _answer_items(
                    item, benchmark, targets, croppers, expansions, seed
                )
                append([records[index]])
        progress = Progress(total, done, what=f"{name} item")
        for start in range(done - done % CHUNK, total, CHUNK):  # a chunk is done as a whole
            for part in _parts(source, range(start, min(start + CHUNK, total))):
                if part[-1].number < done:
                    continue
                answered = _answer_items(part, benchmark, targets, croppers, expansions, seed)
                new = [record for record in answered if record["index"] >= done]
                append(new)
                records += new
                progress.update(len(records))
    return summarise(protocol, records[:total]) | {"records": f"{name}.{digest}.jsonl"}


def _check_answers(source: Any, total: int) -> None:
    rows = getattr(source, "rows", None)
    if not isinstance(rows, list):
        return
    for row in rows[:total]:
        if not row["answers"]:
            raise ValueError(
                f"{row['example_id']} has no answers to score replies against: this split hides "
                "them, or the file lacks them"
            )


def _unanswered(record: Mapping[str, Any]) -> bool:
    """Whether something kept a target from answering the item."""
    replies = (told for by_name in record.get("replies", {}).values() for told in by_name.values())
    return any(Reply("", told.get("failure", "")).unanswered for told in replies)


def _protocol(
    name: str,
    benchmark: Benchmark,
    source: Any,
    targets: Sequence[Reader],
    croppers: Mapping[str, Any],
    expansions: Sequence[float],
    seed: int,
) -> dict[str, Any]:
    """All that the records depend on, and nothing else."""
    return {
        "benchmark": name,
        "split": benchmark.split,
        "source": hashlib.sha256(source.fingerprint.encode()).hexdigest()[:16],
        "metrics": {metric: METRICS[metric].description for metric in benchmark.metrics},
        "prompt": benchmark.prompt,
        "conditions": CONTROLS,
        "targets": {
            target.name: _describe(target) | getattr(target, "settings", {}) for target in targets
        },
        "croppers": {cropper: _describe(model) for cropper, model in croppers.items()},
        "expansions": sorted({float(factor) for factor in expansions} - {1.0}),
        "seed": seed,
        "backend": jax.default_backend(),
        "versions": {package: importlib.metadata.version(package) for package in _PACKAGES},
    }


def _describe(model: Any) -> dict[str, Any]:
    """A model's input size and its weights' digest, where it has any."""
    described: dict[str, Any] = {"kind": type(model).__name__}
    if hasattr(model, "params"):
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(model.params):
            digest.update(np.asarray(leaf).tobytes())
        described |= {"longest_edge": model.longest_edge, "weights": digest.hexdigest()[:16]}
    return described


@contextlib.contextmanager
def _open_records(
    path: Path, protocol: Mapping[str, Any]
) -> Iterator[tuple[BinaryIO, list[dict[str, Any]]]]:
    """A file of records, locked, to append to; and those that it holds already."""
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"another evaluation is at work on {path}") from error
        file.seek(0)
        lines = file.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):  # cut short by a kill
            file.truncate(sum(map(len, lines[:-1])))
            lines.pop()
        if not lines:
            file.write(json.dumps({"protocol": protocol}).encode() + b"\n")
            file.flush()
        records = _last_of_each(lines[1:])
        if [record["index"] for record in records] != list(range(len(records))):
            raise ValueError(f"{path} has been changed: remove it to begin anew")
        yield file, records


class _Item(NamedTuple):
    """An item in work: `image` is uint8 `[H, W, 3]`, empty where `unreadable` says why."""

    number: int
    example: Example
    image: np.ndarray
    seconds: float
    unreadable: str = ""


def _parts(source: Any, chunk: range) -> Iterator[list[_Item]]:
    """The items of a chunk, as many at once as there may be pixels in memory."""
    part: list[_Item] = []
    pixels = 0
    for index in chunk:
        item = _read(source, index)
        size = item.image.size // 3
        if part and pixels + size > PIXELS:
            yield part
            part, pixels = [], 0
        part.append(item)
        pixels += size
    yield part


def _read(source: Any, index: int) -> _Item:
    began = time.perf_counter()
    rows = getattr(source, "rows", None)
    example = None if rows is None else rows[index]
    try:
        example = source[index]
        image = host.to_rgb(example["image"])
    except (OSError, ValueError) as error:
        if example is None:
            raise
        return _Item(index, example, np.empty((0, 0, 3), np.uint8), 0.0, str(error))
    return _Item(index, example, image, time.perf_counter() - began)


def _answer_items(
    items: Sequence[_Item],
    benchmark: Benchmark,
    targets: Sequence[Reader],
    croppers: Mapping[str, Cropper],
    expansions: Sequence[float],
    seed: int,
) -> list[dict[str, Any]]:
    """Records of items: boxes, then the replies under every condition."""
    records = [_begin(item) for item in items]
    readable = [i for i, item in enumerate(items) if not item.unreadable]
    if not readable:
        return records
    images = [items[i].image for i in readable]
    examples = [items[i].example for i in readable]
    kept = [records[i] for i in readable]
    questions = [example["question"] for example in examples]
    for name, cropper in croppers.items():
        began = time.perf_counter()
        boxes = _row_by_row(cropper.propose, lambda reason: INVALID, images, questions)
        seconds = (time.perf_counter() - began) / len(kept)
        for record, image, box in zip(kept, images, boxes, strict=True):
            record["boxes"][name] = [int(v) for v in box]
            record["seconds"][f"propose/{name}"] = seconds
            record["image_tokens"][f"propose/{name}"] = _cropper_tokens(cropper, image)
    for record in kept:
        record["boxes"] = _all_boxes(record, croppers, expansions, seed)

    asked = [benchmark.ask(example) for example in examples]
    conditions = dict.fromkeys([NO_CROP, UPSCALED])
    conditions |= dict.fromkeys(condition for record in kept for condition in record["boxes"])
    for target in targets:
        for condition in conditions:
            rows = [
                i
                for i, record in enumerate(kept)
                if condition in (NO_CROP, UPSCALED) or condition in record["boxes"]
            ]
            pictures = [_pictures(images[i], condition, kept[i]["boxes"]) for i in rows]
            here = [examples[i] for i in rows]
            began = time.perf_counter()
            replies = _replies(benchmark, target, pictures, [asked[i] for i in rows], here)
            seconds = (time.perf_counter() - began) / len(rows)
            stage = f"answer/{target.name}/{condition}"
            for i, example, reply, shown in zip(rows, here, replies, pictures, strict=True):
                scores = {
                    metric: 0.0 if reply.failure else METRICS[metric].score(reply.text, example)
                    for metric in benchmark.metrics
                }
                record = kept[i]
                told: dict[str, Any] = {"text": reply.text, "scores": scores}
                if reply.failure:
                    told["failure"] = reply.failure
                if reply.unanswered:
                    told["scores"] = dict.fromkeys(scores)  # says nothing of the pictures
                record["replies"].setdefault(target.name, {})[condition] = told
                record["seconds"][stage] = seconds
                if hasattr(target, "image_tokens") and not reply.unanswered:
                    record["image_tokens"][stage] = target.image_tokens([shown])
    return records


def _begin(item: _Item) -> dict[str, Any]:
    """The record of an item before anything was asked about it."""
    keep = ("question", "answers", "options", "label", "category", "cycle_category")
    example: Mapping[str, Any] = item.example
    record = {"index": item.number, "example_id": example["example_id"]}
    record |= {key: example[key] for key in keep if key in example}
    if item.unreadable:
        return record | {"unreadable": item.unreadable}
    if "box" in example:
        record["boxes"] = {ORACLE: [int(v) for v in example["box"]]}
    return (
        {"boxes": {}, "replies": {}, "image_tokens": {}}
        | record
        | {
            "size": list(item.image.shape[:2]),
            # Items about one picture are not independent.
            "picture": hashlib.blake2b(item.image.tobytes(), digest_size=8).hexdigest(),
            "seconds": {"read": item.seconds},
        }
    )


def _all_boxes(
    record: Mapping[str, Any], croppers: Mapping[str, Any], expansions: Sequence[float], seed: int
) -> dict[str, list[int]]:
    """Boxes by condition: the controls', the croppers', the true one, and all of these expanded."""
    known = record["boxes"]
    last = np.array(known[list(croppers)[-1]])
    side = np.clip(last[2:] - last[:2], 1, 100)
    corner = np.random.default_rng([seed, record["index"]]).integers(0, 101 - side)
    boxes = {
        CENTRE: [*(50 - side // 2).tolist(), *(50 - side // 2 + side).tolist()],
        RANDOM: [*corner.tolist(), *(corner + side).tolist()],
    }
    boxes |= {name: known[name] for name in (*croppers, ORACLE) if name in known}
    for factor in sorted({float(factor) for factor in expansions} - {1.0}):
        for name in (*croppers, ORACLE):
            if name in known:
                box = np.array(known[name])
                wide = geometry.expand(box, factor) if geometry.is_valid(box) else box
                boxes[expanded(name, factor)] = wide.tolist()
    return boxes


def expanded(name: str, factor: float) -> str:
    """The condition of a box whose area is `factor` times as large."""
    return name if factor == 1 else f"{name} x{factor:g}"


def upscale(image: np.ndarray) -> np.ndarray:
    """A picture `[H, W, 3]` twice as large, or so that its longest side is `MAX_UPSCALED` px."""
    height, width = image.shape[:2]
    factor = min(2.0, MAX_UPSCALED / max(height, width))
    if factor <= 1:
        return image
    size = round(width * factor), round(height * factor)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _pictures(
    image: np.ndarray, condition: str, boxes: Mapping[str, Sequence[int]]
) -> list[np.ndarray]:
    if condition == NO_CROP:
        return [image]
    if condition == UPSCALED:
        return [image, upscale(image)]
    return [image, host.cut(image, boxes[condition])]


def _replies(
    benchmark: Benchmark,
    target: Any,
    pictures: Sequence[Sequence[np.ndarray]],
    questions: Sequence[str],
    examples: Sequence[Example],
) -> list[Reply]:
    def likeliest(pictures, questions, options) -> list[Reply]:
        counts = [len(some) for some in options]
        flat = [option for some in options for option in some]
        repeated = [
            [value for value, count in zip(column, counts, strict=True) for _ in range(count)]
            for column in (pictures, questions)
        ]
        mean = target.log_likelihood(*repeated, flat) / target.answer_tokens(flat)
        ends = np.cumsum(counts)[:-1]
        best = [int(part.argmax()) for part in np.split(mean, ends)]
        return [Reply(some[i]) for some, i in zip(options, best, strict=True)]

    def failed(reason: str) -> Reply:
        return Reply("", f"{REFUSAL}: {reason}")

    if benchmark.likelihood:
        options = [example["options"] for example in examples]
        return _row_by_row(likeliest, failed, pictures, questions, options)
    return _row_by_row(target.answer, failed, pictures, questions)


def _row_by_row(
    function: Callable[..., Any], failed: Callable[[str], Any], *columns: Sequence[Any]
) -> list[Any]:
    """What `function` makes of the rows; of a row that it refuses, what `failed` says."""
    try:
        return list(function(*columns))
    except ValueError as error:
        if len(columns[0]) == 1:
            logging.warning("an item was refused: %s", error)
            return [failed(str(error))]
        singles = [[[value] for value in column] for column in columns]
        return [
            result
            for single in zip(*singles, strict=True)
            for result in _row_by_row(function, failed, *single)
        ]


def _cropper_tokens(cropper: Any, image: np.ndarray) -> int | None:
    if not hasattr(cropper, "longest_edge"):
        return None
    height, width = image.shape[:2]
    source = cropper.source
    grid_rows, columns = host.grid(height, width, source.tile_size, cropper.longest_edge)
    return (grid_rows * columns + 1) * source.config.image_seq_len


def read_records(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of an evaluation that is complete, or of what there is of it."""
    lines = Path(path).read_bytes().splitlines(keepends=True)
    return _last_of_each([line for line in lines[1:] if line.endswith(b"\n")])


def _last_of_each(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    """Records of lines; of an item that was asked about again, the last one."""
    records = [json.loads(line) for line in lines]
    return list({record["index"]: record for record in records}.values())


# Results ------------------------------------------------------------------------------------------


def summarise(protocol: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The results of the records.

    Intervals are 95% percentile bootstrap intervals over pictures, as items about one picture are
    not independent; those of differences are paired. Where options come in cyclic orders, a score
    is the mean over the orders. An item that a target refused or said nothing to is wrong; one that
    something kept it from answering, or whose picture could not be read, is in no score.

    Returns:
        `protocol`; `n`; `unreadable`, reasons by item; of the first target and metric `accuracy` by
        condition; of the last cropper `coverage`, `area` and `valid`; `boxes`, the same of every
        condition; `seconds` and `image_tokens` an item by stage (median, mean); and by name
        `targets`: `failures` by kind, `categories`, and by metric and condition `scores`: `n`,
        `score`, `gain` over no crop, `lead` of the last cropper over it, each with `..._interval`,
        and how many items the condition `rescued`, `harmed` and left as they were (`neutral`).

    Raises:
        ValueError: there is no readable item.
    """
    usable = [record for record in records if "unreadable" not in record]
    if not usable:
        raise ValueError("no picture could be read, so there is no result")
    conditions = list(dict.fromkeys((NO_CROP, CENTRE, RANDOM, UPSCALED, *protocol["croppers"])))
    base = [ORACLE] if any(ORACLE in record["boxes"] for record in usable) else []
    base = conditions + base
    factors = protocol["expansions"]
    movable = [name for name in base if name in (*protocol["croppers"], ORACLE)]
    conditions = base + [expanded(name, factor) for name in movable for factor in factors]
    last = list(protocol["croppers"])[-1]
    groups = _Groups.of(usable)
    results: dict[str, Any] = {
        "protocol": dict(protocol),
        "n": len(usable),
        "unreadable": {r["example_id"]: r["unreadable"] for r in records if "unreadable" in r},
    }
    geometry = {name: _geometry(usable, name) for name in conditions}
    targets = {}
    for target in protocol["targets"]:
        replies = [record["replies"][target] for record in usable]
        scores = {}
        for metric in protocol["metrics"]:
            values = np.array(
                [[score_of(reply, name, metric) for name in conditions] for reply in replies]
            )
            scores[metric] = _scores(values, conditions, conditions.index(last), groups)
        kinds = collections.Counter(
            told["failure"].partition(":")[0]
            for reply in replies
            for told in reply.values()
            if "failure" in told
        )
        targets[target] = {
            "failures": dict(kinds),
            "scores": scores,
            "categories": _categories(usable, target, next(iter(protocol["metrics"])), base),
        }
    headline = targets[next(iter(targets))]["scores"][next(iter(protocol["metrics"]))]
    results["accuracy"] = {name: headline[name]["score"] for name in base}
    results |= {key: geometry[last][key] for key in ("coverage", "area", "valid")}
    results["boxes"] = {name: found for name, found in geometry.items() if found}
    for key, middle in (("seconds", np.median), ("image_tokens", np.mean)):
        stages = dict.fromkeys(stage for record in usable for stage in record[key])
        results[key] = {
            stage: float(middle(told))
            for stage in stages
            if (told := [r[key][stage] for r in usable if r[key].get(stage) is not None])
        }
    return results | {"targets": targets}


def score_of(replies: Mapping[str, Any], condition: str, metric: str) -> float:
    """Of the reply under a condition; NaN where there is no such box or nobody answered."""
    score = replies[condition]["scores"][metric] if condition in replies else None
    return np.nan if score is None else score


class _Groups(NamedTuple):
    """Which items belong together: cluster (picture) and cycle of each, int `[n]`."""

    cluster: np.ndarray
    cycle: np.ndarray

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> "_Groups":
        pictures = np.unique([record["picture"] for record in records], return_inverse=True)[1]
        cycles = [record.get("cycle_category", "") for record in records]
        return cls(pictures, np.unique(cycles, return_inverse=True)[1])


def bootstrap(
    values: np.ndarray, cluster: np.ndarray, cycle: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Means with 95% intervals, from `RESAMPLES` resamples of the clusters, the same in every call.

    Args:
        values: `[n, C]`, NaN where there is none.
        cluster: int `[n]`, what is resampled.
        cycle: int `[n]`; the mean is one over cycles of means over their items.

    Returns:
        Means `[C]`, NaN where there is no value, and the ends of their intervals `[2, C]`.
    """
    count = cluster.max() + 1
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    weights = np.concatenate([np.ones((1, count)), weights])
    known = ~np.isnan(values)
    means = []
    for number in range(cycle.max() + 1):
        rows = cycle == number
        sums, counts = np.zeros((2, count, values.shape[1]))
        np.add.at(sums, cluster[rows], np.where(known, values, 0)[rows])
        np.add.at(counts, cluster[rows], known[rows])
        with np.errstate(invalid="ignore"):
            means.append(weights @ sums / (weights @ counts))
    stacked = np.stack(means)
    present = ~np.isnan(stacked)  # a resample may lack all of a small cycle
    with np.errstate(invalid="ignore"):
        mean = np.where(present, stacked, 0).sum(0) / present.sum(0)
    ends = np.full((2, values.shape[1]), np.nan)
    has = ~np.isnan(mean[0])
    ends[:, has] = np.nanpercentile(mean[1:, has], [2.5, 97.5], axis=0)
    return mean[0], ends


def _scores(
    values: np.ndarray, conditions: Sequence[str], last: int, groups: _Groups
) -> dict[str, dict[str, Any]]:
    """The table of a target and metric from scores `[n, C]`."""
    gains = values - values[:, [conditions.index(NO_CROP)]]
    columns = {"score": values, "gain": gains, "lead": values[:, [last]] - values}
    found: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(conditions):
        known = gains[:, i][~np.isnan(gains[:, i])]
        signs = {"rescued": known > 0, "harmed": known < 0, "neutral": known == 0}
        found[name] = {"n": len(known)} | {key: int(sign.sum()) for key, sign in signs.items()}
    for key, column in columns.items():
        means, ends = bootstrap(column, *groups)
        for name, mean, interval in zip(conditions, means, ends.T, strict=True):
            found[name] |= {key: float(mean), f"{key}_interval": interval.tolist()}
    return found


def _categories(
    records: Sequence[Mapping[str, Any]], target: str, metric: str, conditions: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Of each of the data set's categories `n` and the scores by condition."""
    rows = collections.defaultdict(list)
    for record in records:
        if "category" in record:
            rows[record["category"]].append(record)
    found = {}
    for category, members in sorted(rows.items()):
        groups = _Groups.of(members)
        values = [
            [score_of(told, name, metric) for name in conditions]
            for told in (record["replies"][target] for record in members)
        ]
        means = dict(zip(conditions, bootstrap(np.array(values), *groups)[0].tolist(), strict=True))
        found[category] = {"n": len(members)} | {
            name: mean for name, mean in means.items() if not math.isnan(mean)
        }
    return found


def _geometry(records: Sequence[Mapping[str, Any]], name: str) -> dict[str, float | None]:
    """Coverage of the true box, area and validity of a condition's boxes, means, 0..1."""
    boxes = np.array([r["boxes"][name] for r in records if name in r["boxes"]])
    if not len(boxes):
        return {}
    pairs = np.array(
        [
            (r["boxes"][name], r["boxes"][ORACLE])
            for r in records
            if name in r["boxes"] and ORACLE in r["boxes"]
        ]
    )
    valid = geometry.is_valid(boxes)
    return {
        "coverage": float(geometry.coverage(*pairs.swapaxes(0, 1)).mean()) if len(pairs) else None,
        "area": float(np.where(valid, geometry.area(boxes), 0).mean()),
        "valid": float(valid.mean()),
    }
