# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How many pictures a second one core prepares: this package beside Hugging Face and the decoder.

    python experiments/measure_pipeline.py --json=experiments/pipeline.json

Nothing is downloaded: pictures are drawn here and saved as JPEG, PNG or parquet. What is measured,
in one process on one core, round after round, so that all meet the same machine:

- "ours": batches as a GRPO run on an accelerator gets them: header read, decoded onto the canvas of
  the batch, texts to token ids. Tiles and crops are cut by the step.
- "huggingface": SmolVLM's image processor of transformers in a torch `DataLoader`, without texts.
- "decode": the pixels alone, by the decoder that is used here; "pillow": by Pillow.

Rates are pictures a second of processor time. Beside them stands what chips need: the published
peak rate, a part of it reached, by the operations of a step (`pipeline_needs.py`).
"""

import dataclasses
import functools
import io
import json
import os
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from PIL import Image, ImageDraw
from pipeline_needs import needs

from cropvlm_jax import apps
from cropvlm_jax.data import batching, order, rows
from cropvlm_jax.data.buckets import bucket_examples
from cropvlm_jax.data.source import Source
from cropvlm_jax.hub.tokenizer import train_tokenizer
from cropvlm_jax.models.smolvlm.architecture import ARCHITECTURE
from cropvlm_jax.models.smolvlm.config import SmolVLMConfig
from cropvlm_jax.models.smolvlm.conversations import (
    ANSWER_INSTRUCTION,
    CROP_INSTRUCTION,
    SmolVLMConversations,
)
from cropvlm_jax.pixels import host
from cropvlm_jax.pixels.canvas import FITTED

JSON = flags.DEFINE_string("json", "", "File that the figures go to.")
PICTURES = flags.DEFINE_integer("pictures", 16, "Pictures of a kind.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds, of which the median counts.", lower_bound=1)
EDGES = flags.DEFINE_list("longest_edges", ["512", "1024", "2048"], "Pixels of the cropper's input")
KINDS = flags.DEFINE_list("kinds", [], "Kinds of pictures; all where empty.")

BATCH = 8


# Pictures -----------------------------------------------------------------------------------------


def page(seed: int, height: int = 2200, width: int = 1700) -> Image.Image:
    """A page of scribbled lines on paper that is not quite white."""
    rng = np.random.default_rng(seed)
    paper = Image.fromarray(rng.normal(235, 6, (height, width)).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(paper)
    for y in range(100, height - 100, 36):
        for x in np.cumsum(rng.integers(20, 90, 30)):
            draw.rectangle((x, y, x + int(rng.integers(8, 60)), y + 18), fill=40)
    return paper.convert("RGB")


def photo(seed: int, height: int = 3024, width: int = 4032) -> Image.Image:
    """Soft colours, edges, and the noise of a sensor."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    picture = soft.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for left, top in rng.integers(0, 3000, (60, 2)).tolist():
        draw.rectangle((left, top, left + 200, top + 90), fill=tuple(rng.integers(0, 256, 3)))
    grain = rng.normal(0, 3, (height, width, 1))
    return Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))


def saved(picture: Image.Image, fmt: str, **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    file = io.BytesIO()
    picture.save(file, fmt, **options)
    return file.getvalue()


def encoded(kind: str, seed: int) -> bytes:
    """A picture of a kind."""
    if kind == "png_1024":
        return saved(page(seed, 1024, 1024), "PNG")
    if kind == "jpeg_4032x3024":
        return saved(photo(seed), "JPEG", quality=90)
    return saved(page(seed), "JPEG", quality=85)


NAMES = ("jpeg_2200x1700", "jpeg_4032x3024", "png_1024", "parquet_2200x1700")


def same(image: bytes) -> bytes:
    """The picture itself."""
    return image


def open_kind(kind: str, count: int, folder: pathlib.Path) -> Source:
    """Examples with pictures of a kind; few different ones, which come again.

    Args:
        kind: One of `NAMES`.
        count: How many.
        folder: Where a parquet file may be written.
    """
    different = [encoded(kind, seed) for seed in range(min(count, 4))]
    pictures = [different[i % len(different)] for i in range(count)]
    common = {"question": "What is the total of the second line?", "answers": ["12.50"]}
    if not kind.startswith("parquet"):
        found = [{"example_id": str(i), "image": image} for i, image in enumerate(pictures)]
        return Source(kind, [row | common for row in found], same)
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = [{"bytes": image, "path": f"{i}.jpg"} for i, image in enumerate(pictures)]
    file = folder / "train-00000-of-00001.parquet"
    pq.write_table(pa.table({"id": list(map(str, range(count))), "image": column}), file)
    read = [entry() for _, entry in rows.parquet_rows([file], ["id"])]
    found = [{"example_id": row["id"], "image": row["image"]} for row in read]
    return Source(kind, [row | common for row in found], rows.parquet_picture)


# What prepares them -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Work:
    """What one pass over some pictures took.

    Attributes:
        pictures: How many were prepared.
        seconds: Of the processor.
        moved: Bytes that would go to the devices.
        peak: Bytes of memory at most, beyond those before.
    """

    pictures: int
    seconds: float
    moved: int
    peak: int

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return self.pictures / self.seconds


def memory(field: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" at most."""
    status = pathlib.Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def measured(run: Callable[[], tuple[int, int]]) -> Work:
    """Runs something that returns how many pictures it prepared, and their bytes."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the highest use of memory
    before, began = memory("VmRSS"), time.process_time()
    pictures, moved = run()
    seconds = time.process_time() - began
    return Work(pictures, seconds, moved, memory("VmHWM") - before)


@functools.cache
def make_preparer(edge: int) -> batching.Preparer:
    """What makes rows of a GRPO batch on an accelerator, for SmolVLM-256M."""
    config = SmolVLMConfig.smolvlm_256m()
    tokenizer = train_tokenizer((CROP_INSTRUCTION, ANSWER_INSTRUCTION), 400)
    conversations = SmolVLMConversations(tokenizer, config.image_seq_len)
    cropper_input = batching.CropperInput(
        conversations=conversations,
        see=functools.partial(ARCHITECTURE.see, config, longest_edge=edge),
        grid=functools.partial(ARCHITECTURE.grid, config, longest_edge=edge),
        splits=ARCHITECTURE.splits(config, edge),
        question_tokens=64,
        plan=functools.partial(ARCHITECTURE.plan, config, longest_edge=edge),  # the step cuts
    )
    return batching.Preparer(cropper_input, conversations, FITTED, 32)


def ours(source: Source, edge: int) -> tuple[int, int]:
    """Batches as a run gets them."""
    prepare = make_preparer(edge)
    buckets = bucket_examples(source, prepare.cropper_input, prepare.canvases, BATCH)
    plan = order.plan_batches(range(len(source)), buckets, BATCH)
    pictures = moved = 0
    for batch in order.iterate(order.PlannedBatches(source, prepare, plan)):
        pictures += len(batch.example_id)
        moved += sum(leaf.nbytes for leaf in jax.tree.leaves(batch))
    return pictures, moved


def huggingface(source: Source, edge: int) -> tuple[int, int]:
    """The same pictures through transformers' processor and torch's loader."""
    from torch.utils.data import DataLoader
    from transformers.models.smolvlm import image_processing_pil_smolvlm as module

    processor = module.SmolVLMImageProcessorPil(
        size={"longest_edge": edge}, max_image_size={"longest_edge": 512}
    )

    def collate(examples: Sequence[Any]) -> Any:
        images = [[Image.open(io.BytesIO(one["image"])).convert("RGB")] for one in examples]
        return processor(images, return_tensors="pt")

    pictures = moved = 0
    examples = [source[i] for i in range(len(source))]
    for batch in DataLoader(examples, batch_size=BATCH, collate_fn=collate):  # type: ignore[arg-type]
        pictures += len(batch["pixel_values"])
        moved += sum(tensor.nbytes for tensor in batch.values())
    return pictures, moved


def decode(source: Source) -> tuple[int, int]:
    """The pixels alone."""
    moved = sum(host.decoded(source[i]["image"]).nbytes for i in range(len(source)))
    return len(source), moved


def pillow(source: Source) -> tuple[int, int]:
    """The pixels alone, where Pillow has them."""
    for i in range(len(source)):
        Image.open(io.BytesIO(source[i]["image"])).convert("RGB").load()
    return len(source), 0


# Figures ------------------------------------------------------------------------------------------


def case(source: Source, kind: str, edge: int, rounds: int) -> dict[str, Any]:
    """The figures of a kind of pictures at a resolution."""
    few = Source(kind, source.rows[:BATCH], source.read_image)
    runs: dict[str, Callable[[], tuple[int, int]]] = {
        "ours": functools.partial(ours, source, edge),
        "decode": functools.partial(decode, source),
        "pillow_decode": functools.partial(pillow, few),
        "huggingface": functools.partial(huggingface, few, edge),
    }
    found: dict[str, list[Work]] = {name: [] for name in runs}
    ours(few, edge)  # so that nothing is imported or compiled while the clock runs
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(measured(run))
    figures: dict[str, Any] = {"kind": kind, "longest_edge": edge}
    for name, works in found.items():
        figures[f"{name}_per_core"] = round(statistics.median(work.rate for work in works), 2)
    for name in ("ours", "huggingface"):
        last = found[name][-1]
        figures[f"{name}_bytes"] = last.moved // last.pictures
        figures[f"{name}_peak_mib"] = round(max(work.peak for work in found[name]) / 2**20)
    figures["ratio"] = round(figures["ours_per_core"] / figures["huggingface_per_core"], 2)
    return figures


def machine() -> dict[str, Any]:
    """What it was measured on."""
    info = pathlib.Path("/proc/cpuinfo").read_text()
    names = [line.partition(": ")[2] for line in info.splitlines() if "model name" in line]
    import PIL
    import simplejpeg
    import transformers

    return {
        "processor": names[0] if names else platform.machine(),
        "cores_used": 1,
        "pillow": PIL.__version__,
        "simplejpeg": simplejpeg.__version__,
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def main(argv: list[str]) -> None:
    del argv
    if unknown := set(KINDS.value) - set(NAMES):
        raise ValueError(f"--kinds={','.join(sorted(unknown))}: there are {', '.join(NAMES)}")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ["OMP_NUM_THREADS"] = "1"
    cases = []
    print(f"{'kind':>18} {'px':>5} {'ours':>7} {'decode':>7} {'Pillow':>7} {'HF':>6} {'ratio':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS.value or NAMES:
            source = open_kind(kind, PICTURES.value, pathlib.Path(folder))
            for edge in map(int, EDGES.value):
                cases.append(one := case(source, kind, edge, ROUNDS.value))
                print(
                    f"{kind:>18} {edge:>5} {one['ours_per_core']:>7.1f} "
                    f"{one['decode_per_core']:>7.1f} {one['pillow_decode_per_core']:>7.1f} "
                    f"{one['huggingface_per_core']:>6.2f} {one['ratio']:>6.1f}",
                    flush=True,
                )
    found = {"machine": machine(), "cases": cases, "needs": needs(cases)}
    for need in found["needs"]:
        print(need)
    if JSON.value:
        pathlib.Path(JSON.value).write_text(
            json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    apps.run_script(main)
