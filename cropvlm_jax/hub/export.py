# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Model folders as `transformers` reads them, written."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import nnx
from tokenizers import Tokenizer

from cropvlm_jax.hub import chat_template
from cropvlm_jax.hub.files import read_json, write_json
from cropvlm_jax.hub.model_card import Card, Role, Run
from cropvlm_jax.hub.pretrained import SIDE_FILES, Pretrained, processor_folder
from cropvlm_jax.hub.processors import PROCESSORS, ProcessorFiles
from cropvlm_jax.hub.replies import FILE as REPLIES
from cropvlm_jax.hub.replies import Replies
from cropvlm_jax.hub.weights import INDEX, save_weights
from cropvlm_jax.models.config import VLMConfig
from cropvlm_jax.models.registry import architecture_of


def export(
    folder: str | Path,
    model: Any,
    source: Pretrained,
    dtype: Any = None,
    longest_edge: int | None = None,
    role: Role | None = None,
    run: Run | None = None,
    name: str | None = None,
) -> None:
    """Writes a folder that `transformers` loads by itself; it appears complete or not at all.

    Its README.md, a model card, says how to run it; one that a user wrote there stays.

    Args:
        folder: where to; an older model folder there is replaced.
        model: the weights.
        source: where the tokenizer, the processor and the rest of the config come from.
        dtype: of the stored weights; None keeps the model's.
        longest_edge: pixels that the processor is to resize an image's longest side to, as in the
            training of `model`, where pictures are split into tiles; None keeps what that of
            `source` says. Its other settings are those that `source` was opened with.
        role: what the model does. The chat template of a "cropper" makes a plain question ask for a
            box; that of a "reader" is that of its base model. None keeps what `source` is.
        run: that trained the weights, for the card; None where they are those of `source`.
        name: what the card calls the folder, such as the id that it gets on the Hugging Face Hub;
            None is `folder`.

    Raises:
        FileExistsError: `folder` holds something that is not a model.
        ValueError: the model has another shape than `source`, or may not have this role.
    """
    name, folder = name or str(folder), Path(folder).absolute()
    is_model = (folder / "config.json").is_file()
    if folder.exists() and not is_model and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not a model folder: it will not be overwritten")
    if model.config != source.config:
        raise ValueError(f"the model's config is not that of {source.folder}: {model.config}")
    role, longest_edge = _role(source, role), longest_edge or source.longest_edge
    card = Card(name, source, role, longest_edge, run)
    params = nnx.state(model, nnx.Param)
    if dtype is not None:
        params = jax.tree.map(lambda x: x.astype(dtype), params)
    with _replaced(folder) as temporary:
        _write_side_files(source, temporary, longest_edge, role)
        _write_config(source, temporary, str(jax.tree.leaves(params)[0].dtype))
        _write_generation_config(source, temporary)
        save_weights(params, source.architecture.weights, temporary)
        card.write(temporary, before=folder)
    logging.info("exported to %s", folder)


@contextlib.contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` in the end, or leaves no trace."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    existed = folder.exists()
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if existed:
            folder.rename(old)
        temporary.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def export_processor(
    folder: str | Path,
    source: Pretrained,
    longest_edge: int,
    role: Role | None = None,
    run: Run | None = None,
) -> None:
    """Writes what stands beside the weights of an adapter: tokenizer, processor and model card.

    So it sees pictures, and is asked, as in its training.

    Args:
        folder: where to; made if it is not there.
        source: the model that it was trained on, or the adapter that its training began from.
        longest_edge: pixels that the processor is to resize an image's longest side to.
        role: as `export` takes it.
        run: that trained it, for the card.
    """
    name, folder, role = str(folder), Path(folder), _role(source, role)
    folder.mkdir(parents=True, exist_ok=True)
    _write_side_files(source, folder, longest_edge, role)
    for file in ("config.json", "generation_config.json"):  # of a whole model
        (folder / file).unlink(missing_ok=True)
    base = source.adapter.base if source.adapter else source.name
    Card(name, source, role, longest_edge, run, adapter_of=base).write(folder, before=folder)


def _role(source: Pretrained, role: Role | None) -> Role:
    """What an export is to be; by default what its source is.

    Raises:
        ValueError: it cannot be that.
    """
    if role == "cropper" and not source.architecture.can_crop:
        raise ValueError(f"{source.name}: a {source.config.model_type} may not be a cropper")
    if role is not None:
        return role
    template = _chat_template(source)
    if template and chat_template.asks_for_boxes(template):
        return "cropper"
    if source.architecture.can_crop:
        logging.info(
            "%s is exported as a reader: its chat template asks for no boxes. If it is a cropper "
            "of an older version, export it with role='cropper' (--role=cropper)",
            source.name,
        )
    return "reader"


def _chat_template(source: Pretrained) -> str | None:
    """The chat template of a model; an adapter may have its own."""
    return chat_template.read(source.own_folder) or chat_template.read(source.folder)


def _write_side_files(source: Pretrained, folder: Path, longest_edge: int, role: Role) -> None:
    """All that stands beside the weights: what the source has, and what an old source lacks.

    The image processor makes `transformers` see what the source's model sees, the chat template
    makes it ask what the role wants, and a cropper's file says what it may reply.
    """
    files = ProcessorFiles.read(processor_folder(source.folder, source.adapter))
    architecture = source.architecture
    if not files.images and architecture.processor_files is not None:
        write_processor_files(folder, source.config, source.tokenizer, longest_edge)
        files = ProcessorFiles.read(folder)
    stored = {**files.images, **source.changes}
    images = architecture.image_settings(source.config, longest_edge, stored)
    files.write(folder, images, architecture.processor_config(source.config, files.processor))
    for pattern in SIDE_FILES:
        for file in source.folder.glob(pattern):
            if file.name not in (INDEX, REPLIES, *PROCESSORS):
                shutil.copyfile(file, folder / file.name)
    (source.replies if role == "cropper" else Replies()).write(folder)
    template = _chat_template(source) or chat_template.read(folder)
    if template is not None:
        wanted = chat_template.plain(template)
        if role == "cropper":
            wanted = chat_template.asking(template, architecture.ask_for_box)
        if wanted != chat_template.read(folder):
            chat_template.write(folder, wanted)


def _write_config(source: Pretrained, folder: Path, dtype: str) -> None:
    """Writes the source's config with the dtype that the weights are stored in."""
    config = read_json(source.folder / "config.json")
    for part in (config.get("vision_config"), config.get("text_config")):
        for name in ("dtype", "torch_dtype"):
            (part or {}).pop(name, None)
    # Version 4 of transformers reads the second name.
    write_json(folder / "config.json", config | {"dtype": dtype, "torch_dtype": dtype})


def _write_generation_config(source: Pretrained, folder: Path) -> None:
    """Writes the source's generation settings, with the end of our replies among the stops."""
    generation = read_json(source.folder / "generation_config.json")
    generation.pop("_from_model_config", None)  # would let config.json override the next lines
    stops = np.atleast_1d(generation.get("eos_token_id", []))
    if source.end_token_id not in stops:
        generation["eos_token_id"] = source.end_token_id
    write_json(folder / "generation_config.json", generation)


def write_processor_files(
    folder: str | Path, config: VLMConfig, tokenizer: Tokenizer, longest_edge: int
) -> None:
    """Writes everything but the weights for a model that was made here.

    Args:
        folder: an existing folder.
        config: the model's shape.
        tokenizer: has the special tokens of the architecture.
        longest_edge: pixels that the processor resizes an image's longest side to.

    Raises:
        ValueError: no models of this architecture are made here.
    """
    folder, architecture = Path(folder), architecture_of(config)
    if architecture.processor_files is None:
        raise ValueError(f"there are no processor files for new models of {config.model_type}")
    for name, content in architecture.processor_files(config, tokenizer, longest_edge).items():
        if isinstance(content, str):
            (folder / name).write_text(content, encoding="utf-8")
        else:
            write_json(folder / name, content)
    tokenizer.save(str(folder / "tokenizer.json"))
