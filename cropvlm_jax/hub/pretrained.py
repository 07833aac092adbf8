# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Model folders as `transformers` writes them, opened and loaded."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jax.sharding import Mesh
from tokenizers import Tokenizer

from cropvlm_jax import parallel
from cropvlm_jax.geometry import Grammar
from cropvlm_jax.hub.adapters import BASE, CONFIG, Adapter, is_adapter
from cropvlm_jax.hub.files import blamed_on, read_json
from cropvlm_jax.hub.processors import NESTED, PROCESSORS, ProcessorFiles
from cropvlm_jax.hub.replies import Replies
from cropvlm_jax.hub.weights import INDEX, load_weights
from cropvlm_jax.models import kernel_trial
from cropvlm_jax.models.architecture import Architecture
from cropvlm_jax.models.config import VLMConfig
from cropvlm_jax.models.conversations import Conversations
from cropvlm_jax.models.registry import ARCHITECTURES

BUNDLED = Path(__file__).parent.parent / "assets"
SIDE_FILES = ("*.json", "*.jinja", "*.txt")
CARD = "README.md"  # which names base model and licence
# Side files of a model folder that are JSON objects; `tokenizer.json` is read by its library.
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    INDEX,
)


def resolve(name: str | Path, weights: bool = True, revision: str | None = None) -> Path:
    """The folder of a model: `name` itself, the bundled one, or the Hub's, downloaded once.

    Bundled are the tiny start weights, "zoom_digits/cropper" and "zoom_digits/target", and for
    none, one or several looks "zoom_digits_looks/cropper", "zoom_digits_looks/target" and
    "zoom_digits_looks/cropper_deep"; for receipts and printed pages "documents/reader" and
    "documents/start", a cropper before SFT and GRPO.

    Args:
        name: folder, bundled model or Hub id.
        weights: whether to download them too.
        revision: of a model of the Hub; None is the newest.

    Raises:
        FileNotFoundError: `name` is none of these.
    """
    if not str(name):
        raise FileNotFoundError("no model is named: give a folder or a Hugging Face id")
    folder = Path(os.path.expanduser(name))  # leaves a user that does not exist as it is
    for candidate in (folder, BUNDLED / name):
        if candidate.is_dir():
            return candidate
    if folder.is_file():
        raise FileNotFoundError(f"{str(name)!r} is a file: give the folder that it is in")
    is_path = folder.is_absolute() or str(name).startswith((".", "~")) or len(folder.parts) > 2
    if is_path:
        raise FileNotFoundError(_no_folder(folder))
    if (BUNDLED / folder.parent).is_dir() and len(folder.parts) == 2:
        raise FileNotFoundError(_no_folder(BUNDLED / folder))
    try:
        options: dict[str, Any] = {"allow_patterns": [*SIDE_FILES, CARD]}
        options["allow_patterns"] += ["*.safetensors"] * weights
        if revision is not None:
            options["revision"] = revision
        return Path(huggingface_hub.snapshot_download(str(name), **options))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        if len(folder.parts) == 2 and folder.parent.is_dir():
            raise FileNotFoundError(_no_folder(folder)) from error
        raise FileNotFoundError(
            f"{str(name)!r} is neither an existing folder nor a model that the Hugging Face Hub "
            "gives us now (does it exist, is it private, is there a network?)"
        ) from error


def is_bundled(name: str) -> bool:
    """Whether `resolve` finds a name among the models that come with the package."""
    return bool(name) and not os.path.isdir(os.path.expanduser(name)) and (BUNDLED / name).is_dir()


def is_on_hub(name: str) -> bool:
    """Whether a name is an id on the Hugging Face Hub: it has the form of one, and is no folder."""
    if os.path.isdir(os.path.expanduser(name)) or is_bundled(name):
        return False
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None


def _no_folder(folder: Path) -> str:
    """What to say of a path that is not there: the names that are."""
    parent = next(parent for parent in folder.parents if parent.is_dir())
    found = sorted(p.name for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))
    names = ", ".join(found[:20]) or "no folders"
    return (
        f"there is no folder {str(folder)!r}, neither here nor among the bundled models; "
        f"{str(parent)!r} has {names}"
    )


def _base_folder(adapter: Adapter, weights: bool) -> Path:
    """The folder of the model that an adapter belongs to."""
    named = f"{adapter.folder / CONFIG}: {BASE}={adapter.base!r}"
    try:
        folder = resolve(adapter.base, weights, adapter.revision)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{named} is not there: write there the folder or the Hugging Face id of the model "
            f"that the adapter was trained on ({error})"
        ) from error
    if is_adapter(folder):
        raise ValueError(
            f"{named} is an adapter itself: merge it with `cropvlm export --model={adapter.base} "
            "--out=FOLDER` and write FOLDER there"
        )
    return folder


def processor_folder(folder: Path, adapter: Adapter | None) -> Path:
    """Where the settings of the image processor are: with the adapter, if it was saved with them.

    They are those of the adapter's training then.
    """
    if adapter and any((adapter.folder / name).is_file() for name in PROCESSORS):
        return adapter.folder
    return folder


def _read_tokenizer(
    file: Path, architecture: Architecture, config: VLMConfig
) -> tuple[Tokenizer, int]:
    """A tokenizer that fits a model, and the token that ends a reply.

    Raises:
        ValueError: naming the file that is broken or contradicts the model.
    """
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # of no class of its own
        raise ValueError(
            f"{file} is not a tokenizer ({error}): cut short, or a git-lfs pointer? "
            "Download it again"
        ) from error
    with blamed_on(file):
        image_id = tokenizer.token_to_id(architecture.image_token)
        if image_id != config.image_token_id:
            raise ValueError(
                f"{architecture.image_token} is token {image_id}, but config.json says "
                f"image_token_id={config.image_token_id}"
            )
        end = tokenizer.token_to_id(architecture.end_token)
        if end is None:
            raise ValueError(f"there is no token {architecture.end_token}")
        last, size = max(tokenizer.get_vocab().values()), config.text.vocab_size
        if last >= size:
            raise ValueError(f"there is a token {last}, but config.json says vocab_size={size}")
    return tokenizer, end


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model folder, or an adapter's with that of its base model, its weights not read yet.

    Attributes:
        folder: where it is; of an adapter, where its base model is.
        architecture: what kind of model.
        config: the model's shape.
        tokenizer: its tokenizer.
        longest_edge: pixels that the processor resizes an image's longest side to.
        end_token_id: the token that ends a reply.
        name: what the user called it; the Hub's id, where it is from there.
        changes: settings of the image processor by which the user replaced the folder's own.
        replies: what it may reply, of a cropper.
        adapter: is merged into the weights when they are read; None where there is none.
    """

    folder: Path
    architecture: Architecture
    config: VLMConfig
    tokenizer: Tokenizer
    longest_edge: int
    end_token_id: int
    adapter: Adapter | None = None
    name: str = dataclasses.field(default="", compare=False)
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    replies: Replies = Replies()

    @property
    def own_folder(self) -> Path:
        """Where the user's files are: of an adapter, its own folder."""
        return self.adapter.folder if self.adapter else self.folder

    @property
    def tile_size(self) -> int:
        """Pixels of a side of what the vision tower sees, where that is one square size."""
        return self.config.vision.image_size

    def is_same_model(self, other: "Pretrained") -> bool:
        """Whether both come from the same folders, and so have the same weights."""
        return (self.folder, self.adapter) == (other.folder, other.adapter)

    @classmethod
    def open(
        cls,
        name: str | Path,
        weights: bool = True,
        processor: Mapping[str, Any] | None = None,
    ) -> "Pretrained":
        """Opens a folder or a model of the Hugging Face Hub.

        Args:
            name: a folder, a bundled model or an id on the Hub; see `resolve`. May also be a LoRA
                adapter in PEFT's format: then its base model is opened with it.
            weights: whether to download the weights too.
            processor: settings of the image processor, under Hugging Face's names, that replace
                the folder's own; None is no setting.

        Raises:
            FileNotFoundError: there is no such model, or a file of it is absent.
            ValueError: its parts contradict each other or are not supported.
        """
        folder, adapter = resolve(name, weights), None
        if is_adapter(folder):
            adapter = Adapter.open(folder, weights)
            folder = _base_folder(adapter, weights)
        for file in ("config.json", "tokenizer.json"):
            if not (folder / file).is_file():
                named = f", but {adapter.folder / CONFIG} names it as {BASE}" if adapter else ""
                inside = {path.parent.name for path in folder.glob("*/*config.json")}
                hint = f"; meant may be, in it: {', '.join(sorted(inside))}" if inside else ""
                raise FileNotFoundError(f"{folder} has no {file}: not a model folder{named}{hint}")
        for file in JSON_FILES:
            read_json(folder / file)
            if adapter:
                read_json(adapter.folder / file)
        changes = {key: value for key, value in (processor or {}).items() if value is not None}
        return cls._read(folder, adapter, str(name), changes)

    @classmethod
    def _read(
        cls, folder: Path, adapter: Adapter | None, name: str, changes: dict[str, Any]
    ) -> "Pretrained":
        """Reads what `open` has found."""
        with blamed_on(folder / "config.json"):
            stored = read_json(folder / "config.json")
            model_type = stored.get("model_type")
            if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
                raise ValueError(
                    f"model_type={model_type!r} is not supported, only {', '.join(ARCHITECTURES)}"
                )
            architecture = ARCHITECTURES[model_type]
            shape = architecture.config.from_hf(stored)
        files = ProcessorFiles.read(processor_folder(folder, adapter))
        with blamed_on(files.images_file.with_name(NESTED)):
            architecture.processor_config(shape, files.processor)
        with blamed_on(files.images_file):
            config, longest_edge = architecture.configure(shape, files.images, {})
        with blamed_on(folder):
            if unknown := changes.keys() - set(architecture.processor_settings):
                raise ValueError(f"{model_type} has no processor setting {unknown}")
            if changes:
                config, longest_edge = architecture.configure(shape, files.images, changes)
        tokenizer, end = _read_tokenizer(folder / "tokenizer.json", architecture, config)
        if adapter and (adapter.folder / "tokenizer.json").is_file():  # must fit the base as well
            _read_tokenizer(adapter.folder / "tokenizer.json", architecture, config)
        return cls(
            folder,
            architecture,
            config,
            tokenizer,
            longest_edge,
            end,
            adapter,
            name,
            changes,
            Replies.read(adapter.folder if adapter else folder),
        )

    def grammar(self) -> Grammar:
        """The replies that its tokenizer can write, of a cropper.

        Raises:
            ValueError: the tokenizer is not fit for them.
        """
        return Grammar.from_tokenizer(
            self.tokenizer, self.replies.max_boxes, abstain=self.replies.abstain
        )

    def second_grammar(self) -> Grammar | None:
        """What it can reply when it is shown its crop: a box or none. None where it looks once."""
        if self.replies.looks == 1:
            return None
        return Grammar.from_tokenizer(self.tokenizer, abstain=True)

    def conversations(self, **options: Any) -> Conversations:
        """The model's conversations.

        Args:
            **options: official and max_question_tokens, of `models.conversations.Conversations`.
        """
        seq_len = self.config.image_seq_len
        return self.architecture.conversations(self.tokenizer, seq_len, **options)

    def see(self, image: np.ndarray, longest_edge: int) -> tuple[Any, Any]:
        """What the model sees of a picture, and the picture's grid; see `Architecture.see`.

        Args:
            image: uint8 `[H, W, 3]`.
            longest_edge: pixels that the longest side is resized to, where pictures are split.
        """
        return self.architecture.see(self.config, image, longest_edge)

    def image_tokens(self, height: int, width: int, longest_edge: int) -> int:
        """How many tokens the decoder reads of a picture of this size, as `see` prepares it."""
        return self.architecture.image_tokens(self.config, height, width, longest_edge)

    def log_cost(self, longest_edge: int) -> None:
        """Logs what a picture costs, with a warning where a hardly smaller one costs far less.

        Args:
            longest_edge: pixels that pictures' longest sides are resized to, small ones too.
        """
        if not self.architecture.splits_pictures:
            return
        logging.info(
            "longest_edge=%d: a square picture, however small, costs %d image tokens",
            longest_edge,
            self.image_tokens(longest_edge, longest_edge, longest_edge),
        )
        cheaper = self.architecture.cheaper_edge(self.config, longest_edge)
        if cheaper is not None:
            logging.warning(
                "longest_edge=%d would cost %d image tokens only: pictures are split into whole "
                "tiles of %d px",
                cheaper,
                self.image_tokens(cheaper, cheaper, cheaper),
                self.tile_size,
            )

    def state_shardings(self, mesh: Mesh | jax.sharding.AbstractMesh, state: Any) -> Any:
        """How arrays of this model are spread over a mesh; see `parallel.state_shardings`."""
        axes = self.architecture.logical_axes
        return parallel.state_shardings(mesh, state, self.config.heads, axes)

    def abstract(
        self, *, dtype: Any = jnp.float32, param_dtype: Any = None, remat: bool = False
    ) -> Any:
        """The model with shapes for weights.

        Args:
            dtype: of the computation.
            param_dtype: of the weights; None takes `dtype`.
            remat: whether to recompute each layer in the backward pass instead of storing its
                activations.
        """
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype or dtype, remat=remat)
        model = self.architecture.model
        return nnx.eval_shape(lambda: model(self.config, rngs=nnx.Rngs(0), **options))

    def load(self, mesh: Mesh | None = None, **options: Any) -> Any:
        """The model with its weights, without ever making random ones.

        All processes of a run are to load together: they agree on the kernels that models use.

        Args:
            mesh: whose devices share the weights, none of which ever holds the whole model; None
                puts it on the first device.
            **options: dtype, param_dtype and remat; see `abstract`.
        """
        kernel_trial.decide_if_nobody_has()
        graphdef, shapes = nnx.split(self.abstract(**options))
        if mesh is not None:
            shapes = jax.tree.map(
                lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
                shapes,
                self.state_shardings(mesh, shapes),
            )
        table = self.architecture.weights
        return nnx.merge(graphdef, load_weights(self.folder, shapes, table, self.adapter))
