# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Model folders as `transformers` writes and reads them."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jax.sharding import Mesh
from tokenizers import Tokenizer

from cropvlm_jax import geometry, parallel
from cropvlm_jax.hub.weights import (
    INDEX,
    LLAVA,
    QWEN2_5_VL,
    SMOLVLM,
    Table,
    load_weights,
    save_weights,
)
from cropvlm_jax.models import clip, conversations, llava, qwen2_5_vl
from cropvlm_jax.models.llava import Llava, LlavaConfig
from cropvlm_jax.models.qwen2_5_vl import Qwen2_5_VL, QwenConfig
from cropvlm_jax.models.smolvlm import MODEL_TYPES, SmolVLM, SmolVLMConfig
from cropvlm_jax.pixels import host

BUNDLED = Path(__file__).parent.parent / "assets"
SIDE_FILES = ("*.json", "*.jinja", "*.txt")


def resolve(name: str | Path, weights: bool = True) -> Path:
    """The folder of a model: `name` itself, the bundled one, or the Hub's, downloaded once.

    Bundled are the tiny start weights, "zoom_digits/cropper" and "zoom_digits/target".

    Args:
        name: folder, bundled model or Hub id.
        weights: whether to download them too.

    Raises:
        FileNotFoundError: `name` is none of these.
    """
    folder = Path(name).expanduser()
    for candidate in (folder, BUNDLED / name):
        if candidate.is_dir():
            return candidate
    try:
        patterns = [*SIDE_FILES, *["*.safetensors"] * weights]
        return Path(huggingface_hub.snapshot_download(str(name), allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"{str(name)!r} is neither an existing folder nor a model that the Hugging Face Hub "
            "gives us now (does it exist, is it private, is there a network?)"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class Architecture(NamedTuple):
    """What differs between the models that a folder may hold.

    Attributes:
        config: class of the shape, which `from_hf` reads from a parsed `config.json`.
        model: the module, a `models.vlm.VLM`.
        table: its weights.
        prompts: class of its conversations.
        image: the token that stands for a piece of a picture.
        end: the token that ends a reply.
        settings: those of the image processor that `Pretrained.open` may be told.
        processing: from the shape, Hugging Face's settings of the image processor in the folder,
            and what is told instead, to the shape that minds them, and the pixels that pictures'
            longest edges are resized to.
        see: from the shape, a picture uint8 `[H, W, 3]` and those pixels to what `encode_images`
            takes, leaves `[N, ...]`, and to what the prompt must know of it, its grid.
    """

    config: Any
    model: Any
    table: Table
    prompts: Any
    image: str
    end: str
    settings: tuple[str, ...]
    processing: Callable[[Any, dict[str, Any], dict[str, Any]], tuple[Any, int]]
    see: Callable[[Any, np.ndarray, int], tuple[Any, Any]]


def _smolvlm_processing(
    config: SmolVLMConfig, settings: dict[str, Any], told: dict[str, Any]
) -> tuple[SmolVLMConfig, int]:
    side = config.vision.image_size
    tile = settings.get("max_image_size", {}).get("longest_edge", side)
    if tile != side:
        raise ValueError(
            f"the processor cuts tiles of {tile} px, but the vision tower takes {side} px"
        )
    return config, settings.get("size", {}).get("longest_edge", 4 * tile)


_SMOLVLM = Architecture(
    config=SmolVLMConfig,
    model=SmolVLM,
    table=SMOLVLM,
    prompts=conversations.Prompts,
    image=conversations.IMAGE,
    end=conversations.END,
    settings=(),
    processing=_smolvlm_processing,
    see=lambda config, image, edge: host.tile(image, config.vision.image_size, edge),
)


def _llava_processing(
    config: LlavaConfig, settings: dict[str, Any], told: dict[str, Any]
) -> tuple[LlavaConfig, int]:
    settings |= told
    side = config.vision.image_size
    square = {"height": side, "width": side}
    supported = {
        "size": {"shortest_edge": side},
        "crop_size": square,
        "resample": 3,  # bicubic
        "image_mean": list(clip.MEAN),
        "image_std": list(clip.STD),
        **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), True),
    }
    for key, expected in supported.items():
        value = settings.get(key, expected)
        if isinstance(value, int) and key in ("size", "crop_size"):  # as old versions wrote it
            value = {"shortest_edge": value} if key == "size" else {"height": value, "width": value}
        if value != expected:
            raise ValueError(f"the processor's {key}={value!r} is not supported, only {expected!r}")
    return dataclasses.replace(config, pad=bool(settings.get("do_pad"))), side


_LLAVA = Architecture(
    config=LlavaConfig,
    model=Llava,
    table=LLAVA,
    prompts=conversations.LlavaPrompts,
    image=conversations.IMAGE,
    end=conversations.LLAVA_END,
    settings=("do_pad",),
    processing=_llava_processing,
    see=lambda config, image, _: (
        host.bicubic_square(image, config.vision.image_size, config.fill)[None],
        None,
    ),
)


def _qwen_processing(
    config: QwenConfig, settings: dict[str, Any], told: dict[str, Any]
) -> tuple[QwenConfig, int]:
    supported = {
        "patch_size": config.vision.patch_size,
        "merge_size": config.vision.spatial_merge_size,
        "temporal_patch_size": qwen2_5_vl.TEMPORAL_PATCH,
        "resample": 3,  # bicubic
        "image_mean": list(clip.MEAN),
        "image_std": list(clip.STD),
        **dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True),
    }
    for key, expected in supported.items():
        if settings.get(key, expected) != expected:
            raise ValueError(
                f"the processor's {key}={settings[key]!r} is not supported, only {expected!r}"
            )
    # As transformers 5 writes them, as the Hub has them.
    size = settings.get("size") or {}
    least = settings.get("min_pixels", size.get("shortest_edge", config.limits.min_pixels))
    most = settings.get("max_pixels", size.get("longest_edge", config.limits.max_pixels))
    limits = geometry.PixelLimits(
        max_pixels=told.get("max_pixels", min(most, config.limits.max_pixels)),
        min_pixels=least,
        factor=config.vision.tile_size,
    )
    return dataclasses.replace(config, limits=limits), limits.factor * limits.most_tiles


_QWEN = Architecture(
    config=QwenConfig,
    model=Qwen2_5_VL,
    table=QWEN2_5_VL,
    prompts=conversations.QwenPrompts,
    image=conversations.QWEN_IMAGE,
    end=conversations.QWEN_END,
    settings=("max_pixels",),
    processing=_qwen_processing,
    see=lambda config, image, _: qwen2_5_vl.see(image, config.limits),
)
# By `model_type` of config.json.
ARCHITECTURES: dict[str, Architecture] = {
    **dict.fromkeys(MODEL_TYPES, _SMOLVLM),
    llava.MODEL_TYPE: _LLAVA,
    qwen2_5_vl.MODEL_TYPE: _QWEN,
}


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model folder, its weights not read yet.

    Attributes:
        folder: where it is.
        architecture: what kind of model.
        config: the model's shape.
        tokenizer: its tokenizer.
        longest_edge: pixels that the processor resizes an image's longest side to.
        end_token_id: the token that ends a reply.
    """

    folder: Path
    architecture: Architecture
    config: Any
    tokenizer: Tokenizer
    longest_edge: int
    end_token_id: int

    @property
    def tile_size(self) -> int:
        """Pixels of a side of what the vision tower sees, where that is square."""
        return self.config.vision.image_size

    @classmethod
    def open(
        cls,
        name: str | Path,
        weights: bool = True,
        processor: Mapping[str, Any] | None = None,
    ) -> "Pretrained":
        """Opens a folder or a model of the Hugging Face Hub.

        Args:
            name: as of `resolve`.
            weights: likewise.
            processor: settings of the image processor, under Hugging Face's names, that replace
                the folder's own; None is no setting.

        Raises:
            FileNotFoundError: there is no such model, or a file of it is absent.
            ValueError: its parts contradict each other or are not supported.
        """
        folder = resolve(name, weights)
        for file in ("config.json", "tokenizer.json"):
            if not (folder / file).is_file():
                raise FileNotFoundError(f"{folder} has no {file}: not a model folder")
        stored = _read_json(folder / "config.json")
        if stored.get("model_type") not in ARCHITECTURES:
            raise ValueError(
                f"{folder}: model_type={stored.get('model_type')!r} is not supported, only "
                f"{', '.join(ARCHITECTURES)}"
            )
        architecture = ARCHITECTURES[stored["model_type"]]
        config = architecture.config.from_hf(stored)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # Up to version 4 transformers stores the image processor apart, since 5 nested.
        settings = _read_json(folder / "preprocessor_config.json")
        settings |= _read_json(folder / "processor_config.json").get("image_processor", {})
        changes = {key: v for key, v in (processor or {}).items() if v is not None}
        try:
            if unknown := changes.keys() - set(architecture.settings):
                raise ValueError(f"{stored['model_type']} has no processor setting {unknown}")
            config, longest = architecture.processing(config, settings, changes)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
        image_id = tokenizer.token_to_id(architecture.image)
        if image_id != config.image_token_id:
            raise ValueError(
                f"{folder}: {architecture.image} is token {image_id} of the tokenizer, but "
                f"config.json says image_token_id={config.image_token_id}"
            )
        end = tokenizer.token_to_id(architecture.end)
        if end is None:
            raise ValueError(f"{folder}: the tokenizer has no {architecture.end}")
        return cls(folder, architecture, config, tokenizer, longest, end)

    def prompts(self, **options: Any) -> Any:
        """Its conversations, with the interface of `conversations.Prompts`; options as there."""
        return self.architecture.prompts(self.tokenizer, self.config.image_seq_len, **options)

    def see(self, image: np.ndarray, longest_edge: int) -> tuple[Any, Any]:
        """What the model sees of a picture, as `Architecture.see` tells.

        Args:
            image: uint8 `[H, W, 3]`.
            longest_edge: pixels that the longest side is resized to, where pictures are split.
        """
        return self.architecture.see(self.config, image, longest_edge)

    def abstract(
        self, *, dtype: Any = jnp.float32, param_dtype: Any = None, remat: bool = False
    ) -> Any:
        """The model with shapes for weights; arguments as of `load`."""
        options = dict(dtype=dtype, param_dtype=param_dtype or dtype, remat=remat)
        model = self.architecture.model
        return nnx.eval_shape(lambda: model(self.config, rngs=nnx.Rngs(0), **options))

    def load(self, mesh: Mesh | None = None, **options: Any) -> Any:
        """The model with its weights, without ever making random ones.

        Args:
            mesh: whose devices share the weights, none of which ever holds the whole model; None
                puts it on the first device.
            **options: dtype, of the computation; param_dtype, of the weights, by default the same;
                remat, whether to recompute each layer in the backward pass instead of storing its
                activations.
        """
        graphdef, shapes = nnx.split(self.abstract(**options))
        if mesh is not None:
            shardings = parallel.state_shardings(mesh, shapes, self.config.heads)
            shapes = jax.tree.map(
                lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
                *(shapes, shardings),
            )
        return nnx.merge(graphdef, load_weights(self.folder, shapes, self.architecture.table))


def export(
    folder: str | Path,
    model: Any,
    source: Pretrained,
    dtype: Any = None,
    longest_edge: int | None = None,
) -> None:
    """Writes a folder that `transformers` loads by itself; it appears complete or not at all.

    Args:
        folder: where to; an older model folder there is replaced.
        model: the weights.
        source: where the tokenizer, the processor and the rest of the config come from.
        dtype: of the stored weights; None keeps the model's.
        longest_edge: pixels that a SmolVLM's processor is to resize an image's longest side to, as
            in the training of `model`; None keeps what that of `source` says.

    Raises:
        FileExistsError: `folder` holds something that is not a model.
        ValueError: the model has another shape than `source`.
    """
    folder = Path(folder).absolute()
    exists = folder.exists()
    is_model = (folder / "config.json").is_file()
    if exists and not is_model and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not a model folder: it will not be overwritten")
    if model.config != source.config:
        raise ValueError(f"the model's config is not that of {source.folder}: {model.config}")
    params = nnx.state(model, nnx.Param)
    if dtype is not None:
        params = jax.tree.map(lambda x: x.astype(dtype), params)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    temporary.mkdir(parents=True)
    try:
        stored = any((source.folder / f"{p}_config.json").is_file() for p in _PROCESSORS)
        if not stored and source.architecture is _SMOLVLM:
            write_processor_files(temporary, source.config, source.tokenizer, source.longest_edge)
        for pattern in SIDE_FILES:
            for file in source.folder.glob(pattern):
                if file.name != INDEX:
                    shutil.copyfile(file, temporary / file.name)
        if longest_edge is not None:
            for path in (temporary / f"{name}_config.json" for name in _PROCESSORS):
                settings = _read_json(path)
                images = (
                    settings if path.name.startswith("pre") else settings.get("image_processor")
                )
                if images:
                    images["size"] = {"longest_edge": longest_edge}
                    _write_json(path, settings)
        config = _read_json(source.folder / "config.json")
        for part in (config, config.get("vision_config", {}), config.get("text_config", {})):
            part.pop("torch_dtype", None)  # the old name of `dtype`
            part.pop("dtype", None)
        config["dtype"] = str(jax.tree.leaves(params)[0].dtype)
        _write_json(temporary / "config.json", config)
        generation = _read_json(source.folder / "generation_config.json")
        generation.pop("_from_model_config", None)  # would let config.json override the next line
        stops = np.atleast_1d(generation.get("eos_token_id", []))
        if source.end_token_id not in stops:
            generation["eos_token_id"] = source.end_token_id
        _write_json(temporary / "generation_config.json", generation)
        save_weights(params, source.architecture.table, temporary)
        if exists:
            folder.rename(old)
        temporary.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    logging.info("exported to %s", folder)


_PROCESSORS = ("preprocessor", "processor")


def write_processor_files(
    folder: str | Path, config: SmolVLMConfig, tokenizer: Tokenizer, longest_edge: int
) -> None:
    """Writes everything but the weights for a model that we made ourselves.

    The classes are Idefics3's for both model types: SmolVLM's also want a video processor, which
    needs torchvision, and treat images in the same way.

    Args:
        folder: an existing folder.
        config: the model's shape.
        tokenizer: has SmolVLM's special tokens.
        longest_edge: pixels that the processor resizes an image's longest side to.
    """
    folder = Path(folder)
    processor_class = {"processor_class": "Idefics3Processor"}
    special = {
        "bos_token": conversations.START,
        "eos_token": conversations.END,
        "pad_token": "<|im_end|>",
    }
    ids = {f"{name}_id": tokenizer.token_to_id(token) for name, token in special.items()}
    half = [0.5, 0.5, 0.5]
    image_processor = {
        "image_processor_type": "Idefics3ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"longest_edge": longest_edge},
        "resample": 1,
        "do_image_splitting": True,
        "max_image_size": {"longest_edge": config.vision.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": half,
        "image_std": half,
        "do_pad": True,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.text.max_position_embeddings,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    files = {
        "config": config.to_hf(),
        "generation_config": ids,
        "preprocessor_config": image_processor | processor_class,
        "processor_config": {"image_seq_len": config.image_seq_len} | processor_class,
        "tokenizer_config": tokenizer_config | special | processor_class,
        "special_tokens_map": special,
    }
    for name, content in files.items():
        _write_json(folder / f"{name}.json", content)
    (folder / "chat_template.jinja").write_text(conversations.CHAT_TEMPLATE, encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
