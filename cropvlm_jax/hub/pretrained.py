# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Model folders as `transformers` writes and reads them."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from tokenizers import Tokenizer

from cropvlm_jax import prompts
from cropvlm_jax.hub.weights import INDEX, SMOLVLM, load_weights, save_weights
from cropvlm_jax.models.smolvlm import SmolVLM, SmolVLMConfig

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


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A SmolVLM folder, its weights not read yet.

    Attributes:
        folder: where it is.
        config: the model's shape.
        tokenizer: its tokenizer.
        longest_edge: pixels that the processor resizes an image's longest side to.
        tile_size: pixels of a side of what the vision tower sees.
        end_token_id: the token that ends a reply.
    """

    folder: Path
    config: SmolVLMConfig
    tokenizer: Tokenizer
    longest_edge: int
    tile_size: int
    end_token_id: int

    @classmethod
    def open(cls, name: str | Path, weights: bool = True) -> "Pretrained":
        """Opens a folder or a model of the Hugging Face Hub; arguments as of `resolve`.

        Raises:
            FileNotFoundError: there is no such model, or a file of it is absent.
            ValueError: its parts contradict each other or are not supported.
        """
        folder = resolve(name, weights)
        for file in ("config.json", "tokenizer.json"):
            if not (folder / file).is_file():
                raise FileNotFoundError(f"{folder} has no {file}: not a model folder")
        config = SmolVLMConfig.from_hf(_read_json(folder / "config.json"))
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # Up to version 4 transformers stores the image processor apart, since 5 nested.
        processor = _read_json(folder / "preprocessor_config.json")
        processor |= _read_json(folder / "processor_config.json").get("image_processor", {})
        tile = processor.get("max_image_size", {}).get("longest_edge", config.vision.image_size)
        if tile != config.vision.image_size:
            raise ValueError(
                f"{folder}: the processor cuts tiles of {tile} px, but the vision tower takes "
                f"{config.vision.image_size} px"
            )
        image_id = tokenizer.token_to_id(prompts.IMAGE)
        if image_id != config.image_token_id:
            raise ValueError(
                f"{folder}: {prompts.IMAGE} is token {image_id} of the tokenizer, but config.json "
                f"says image_token_id={config.image_token_id}"
            )
        end = tokenizer.token_to_id(prompts.END)
        if end is None:
            raise ValueError(f"{folder}: the tokenizer has no {prompts.END}")
        longest = processor.get("size", {}).get("longest_edge", 4 * tile)
        return cls(folder, config, tokenizer, longest, tile, end)

    def abstract(
        self, *, dtype: Any = jnp.float32, param_dtype: Any = None, remat: bool = False
    ) -> SmolVLM:
        """The model with shapes for weights; arguments as of `load`."""
        options = dict(dtype=dtype, param_dtype=param_dtype or dtype, remat=remat)
        return nnx.eval_shape(lambda: SmolVLM(self.config, rngs=nnx.Rngs(0), **options))

    def load(self, **options: Any) -> SmolVLM:
        """The model with its weights, without ever making random ones.

        Args:
            **options: dtype, of the computation; param_dtype, of the weights, by default the same;
                remat, whether to recompute each layer in the backward pass instead of storing its
                activations.
        """
        graphdef, shapes = nnx.split(self.abstract(**options))
        return nnx.merge(graphdef, load_weights(self.folder, shapes, SMOLVLM))


def export(folder: str | Path, model: SmolVLM, source: Pretrained, dtype: Any = None) -> None:
    """Writes a folder that `transformers` loads by itself; it appears complete or not at all.

    Args:
        folder: where to; an older model folder there is replaced.
        model: the weights.
        source: where the tokenizer, the processor and the rest of the config come from.
        dtype: of the stored weights; None keeps the model's.

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
        if not any((source.folder / f"{p}_config.json").is_file() for p in _PROCESSORS):
            write_processor_files(temporary, source.config, source.tokenizer, source.longest_edge)
        for pattern in SIDE_FILES:
            for file in source.folder.glob(pattern):
                if file.name != INDEX:
                    shutil.copyfile(file, temporary / file.name)
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
        save_weights(params, SMOLVLM, temporary)
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
    special = {"bos_token": prompts.START, "eos_token": prompts.END, "pad_token": "<|im_end|>"}
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
    (folder / "chat_template.jinja").write_text(prompts.CHAT_TEMPLATE, encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
