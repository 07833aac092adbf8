# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights in and out of safetensors by one declarative table per model, read in both directions."""

import collections
import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Buffers that old versions of transformers stored; they hold nothing that was learned.
IGNORED = (".rotary_emb.inv_freq", ".embeddings.position_ids")


class Layout(NamedTuple):
    """How an array differs between the two sides."""

    load: Callable[[Any], Any]
    save: Callable[[Any], Any]


def _conv_to_linear(x: Any) -> Any:
    """`[D, 3, p, p]` to `[p * p * 3, D]`: rows of pixels, then columns, then channels."""
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def _linear_to_conv(x: Any) -> Any:
    """`[p * p * 3, D]` to `[D, 3, p, p]`."""
    side = math.isqrt(x.shape[0] // 3)
    return x.reshape(side, side, 3, x.shape[1]).transpose(3, 2, 0, 1)


def _video_conv_to_linear(x: Any) -> Any:
    """`[D, 3, 2, p, p]` to `[2 * p * p * 3, D]`: frames, rows of pixels, columns, channels."""
    return x.transpose(2, 3, 4, 1, 0).reshape(-1, x.shape[0])


def _linear_to_video_conv(x: Any) -> Any:
    """`[2 * p * p * 3, D]` to `[D, 3, 2, p, p]`."""
    side = math.isqrt(x.shape[0] // 6)
    return x.reshape(2, side, side, 3, x.shape[1]).transpose(4, 3, 0, 1, 2)


SAME = Layout(lambda x: x, lambda x: x)
TRANSPOSE = Layout(lambda x: x.T, lambda x: x.T)
CONV = Layout(_conv_to_linear, _linear_to_conv)
VIDEO_CONV = Layout(_video_conv_to_linear, _linear_to_video_conv)


@dataclasses.dataclass(frozen=True)
class Weight:
    """One row of a weight table.

    Attributes:
        hf: Hugging Face's name; `{}` is the layer, whose weights are stacked on our leading axis.
        ours: dotted path of our parameter.
        layout: how the arrays differ.
        tied_to: path of the parameter that stands in where a model has no `ours` of its own.
        also: another name that is read where `hf` is absent, never written.
        part: which one `ours` is of how many equal parts of Hugging Face's array, along its first
            axis: rows of a fused array stand together, in order.
    """

    hf: str
    ours: str
    layout: Layout = SAME
    tied_to: str | None = None
    also: str | None = None
    part: tuple[int, int] = (0, 1)

    def names(self, leaf: Any) -> list[str]:
        """Hugging Face's names of the arrays that make up `leaf`."""
        return self._numbered(self.hf, leaf)

    def aliases(self, leaf: Any) -> dict[str, str]:
        """`names` by what they are also called."""
        also = self._numbered(self.also, leaf) if self.also else []
        return dict(zip(also, self.names(leaf), strict=False))

    @staticmethod
    def _numbered(name: str, leaf: Any) -> list[str]:
        return [name.format(i) for i in range(leaf.shape[0])] if "{}" in name else [name]

    def parts(self, leaf: Any) -> list[Any]:
        """The arrays of `names`, or this row's part of them, in Hugging Face's layout."""
        return [self.layout.save(part) for part in (leaf if "{}" in self.hf else [leaf])]

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The inverse of `parts`."""
        loaded = [self.layout.load(part) for part in parts]
        return np.stack(loaded) if "{}" in self.hf else loaded[0]


Table = tuple[Weight, ...]


def _linear(hf: str, ours: str) -> Table:
    return (
        Weight(f"{hf}.weight", f"{ours}.kernel", TRANSPOSE),
        Weight(f"{hf}.bias", f"{ours}.bias"),
    )


def _layer_norm(hf: str, ours: str) -> Table:
    return Weight(f"{hf}.weight", f"{ours}.scale"), Weight(f"{hf}.bias", f"{ours}.bias")


def _decoder(hf: str, ours: str, head: str = "lm_head", biased: str = "") -> Table:
    """A Llama decoder under the prefixes `hf` and `ours`, its output head apart.

    Of its linear layers, those that are named in `biased` have biases.
    """
    layer, stacked = hf + "layers.{}.", ours + "layers."
    kernels = {
        "self_attn.q_proj": "q",
        "self_attn.k_proj": "k",
        "self_attn.v_proj": "v",
        "self_attn.o_proj": "o",
        "mlp.gate_proj": "gate",
        "mlp.up_proj": "up",
        "mlp.down_proj": "down",
    }
    embedding = f"{ours}embedding.embedding"
    return (
        Weight(f"{hf}embed_tokens.weight", embedding),
        Weight(f"{layer}input_layernorm.weight", f"{stacked}attention_norm.scale"),
        Weight(f"{layer}post_attention_layernorm.weight", f"{stacked}mlp_norm.scale"),
        *(
            Weight(f"{layer}{theirs}.weight", f"{stacked}{mine}.kernel", TRANSPOSE)
            for theirs, mine in kernels.items()
        ),
        *(
            Weight(f"{layer}{theirs}.bias", f"{stacked}{mine}.bias")
            for theirs, mine in kernels.items()
            if mine in biased
        ),
        Weight(f"{hf}norm.weight", f"{ours}norm.scale"),
        Weight(f"{head}.weight", f"{ours}head", tied_to=embedding),
    )


def _tower(hf: str, ours: str) -> Table:
    """What SigLIP's and CLIP's towers share, under the prefixes `hf` and `ours`."""
    layer, stacked = hf + "encoder.layers.{}.", ours + "layers."
    linears = {
        "self_attn.q_proj": "q",
        "self_attn.k_proj": "k",
        "self_attn.v_proj": "v",
        "self_attn.out_proj": "o",
        "mlp.fc1": "fc1",
        "mlp.fc2": "fc2",
    }
    patches = "embeddings.patch_embedding"
    positions = "embeddings.position_embedding"
    return (
        Weight(f"{hf}{patches}.weight", f"{ours}patch_embedding.kernel", CONV),
        Weight(f"{hf}{positions}.weight", f"{ours}position_embedding.embedding"),
        *_layer_norm(f"{layer}layer_norm1", f"{stacked}attention_norm"),
        *_layer_norm(f"{layer}layer_norm2", f"{stacked}mlp_norm"),
        *(
            row
            for theirs, mine in linears.items()
            for row in _linear(f"{layer}{theirs}", f"{stacked}{mine}")
        ),
        *_layer_norm(f"{hf}post_layernorm", f"{ours}norm"),
    )


def _clip(hf: str, ours: str, also: str) -> Table:
    """A CLIP tower under the prefixes `hf` and `ours`, which may also be stored under `also`."""
    rows = (
        *_tower(hf, ours),
        Weight(f"{hf}embeddings.class_embedding", f"{ours}class_embedding"),
        *_layer_norm(f"{hf}pre_layrnorm", f"{ours}pre_norm"),  # so spelled
    )
    return tuple(dataclasses.replace(r, also=also + r.hf.removeprefix(hf)) for r in rows)


LLAMA: Table = _decoder("model.", "")
SMOLVLM: Table = (
    *_tower("model.vision_model.", "vision."),
    Weight("model.vision_model.embeddings.patch_embedding.bias", "vision.patch_embedding.bias"),
    Weight("model.connector.modality_projection.proj.weight", "connector.kernel", TRANSPOSE),
    *_decoder("model.text_model.", "text."),
)


LLAVA: Table = (
    # The names of the released models; transformers 5 leaves "vision_model." out.
    *_clip("vision_tower.vision_model.", "vision.", also="vision_tower."),
    *_linear("multi_modal_projector.linear_1", "projector.fc1"),
    *_linear("multi_modal_projector.linear_2", "projector.fc2"),
    *_decoder("language_model.model.", "text.", head="language_model.lm_head"),
)


def _qwen(tower: str, decoder: str) -> Table:
    """A Qwen2.5-VL whose two parts are stored under these prefixes."""
    layer, stacked = tower + "blocks.{}.", "vision.layers."
    linears = {
        "attn.proj": "o",
        "mlp.gate_proj": "gate",
        "mlp.up_proj": "up",
        "mlp.down_proj": "down",
    }
    return (
        Weight(f"{tower}patch_embed.proj.weight", "vision.patch_embedding.kernel", VIDEO_CONV),
        Weight(f"{layer}norm1.weight", f"{stacked}attention_norm.scale"),
        Weight(f"{layer}norm2.weight", f"{stacked}mlp_norm.scale"),
        *(
            dataclasses.replace(row, part=(i, 3))
            for i, mine in enumerate("qkv")
            for row in _linear(f"{layer}attn.qkv", f"{stacked}{mine}")
        ),
        *(
            row
            for theirs, mine in linears.items()
            for row in _linear(f"{layer}{theirs}", f"{stacked}{mine}")
        ),
        Weight(f"{tower}merger.ln_q.weight", "projector.norm.scale"),
        *_linear(f"{tower}merger.mlp.0", "projector.fc1"),
        *_linear(f"{tower}merger.mlp.2", "projector.fc2"),
        *_decoder(decoder, "text.", biased="qkv"),
    )


# The Hub's names, which transformers 5 writes too, and what its modules are called.
QWEN2_5_VL: Table = tuple(
    dataclasses.replace(row, also=other.hf)
    for row, other in zip(
        _qwen("visual.", "model."), _qwen("model.visual.", "model.language_model."), strict=True
    )
)


def _path(keys: Sequence[Any]) -> str:
    """Dotted path of a leaf, the same for an `nnx.State` and for its pure dict."""
    return ".".join(str(k.key) for k in keys if isinstance(k, jax.tree_util.DictKey))


def _match(table: Table, params: Any) -> dict[str, tuple[Weight, Any]]:
    """Rows and leaves of the parameters by path, in the table's order."""
    leaves = {_path(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}
    matched = {row.ours: (row, leaves[row.ours]) for row in table if row.ours in leaves}
    unmatched = sorted(leaves.keys() - matched.keys())
    unmatched += sorted(r.ours for r in table if r.ours not in leaves and not r.tied_to)
    if unmatched:
        raise ValueError(f"the weight table and the model disagree about: {', '.join(unmatched)}")
    return matched


class _Stored(NamedTuple):
    """A weight in an open safetensors file."""

    file: Any
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.file.get_slice(self.name).get_shape())

    def read(self, part: tuple[int, int] = (0, 1)) -> np.ndarray:
        """The array, or of `Weight.part` that one."""
        index, count = part
        if count == 1:
            return self.file.get_tensor(self.name)
        rows = self.shape[0] // count
        return self.file.get_slice(self.name)[index * rows : (index + 1) * rows]


def _open(folder: Path, aliases: dict[str, str], stack: contextlib.ExitStack) -> dict[str, _Stored]:
    """Opens the safetensors files of `folder`; returns its weights by name, `aliases` undone."""
    if (folder / FILE).is_file():
        files = [FILE]
    elif (folder / INDEX).is_file():
        files = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    elif any(folder.glob("*.bin")):
        raise ValueError(
            f"{folder} holds pickled .bin weights, and only safetensors are read. Convert them: "
            "from transformers import AutoModelForImageTextToText as Auto (a text model: "
            f"AutoModelForCausalLM); Auto.from_pretrained({str(folder)!r}).save_pretrained(...)"
        )
    else:
        raise ValueError(f"{folder} has neither {FILE} nor {INDEX}")
    stored: dict[str, _Stored] = {}
    for file in files:
        try:
            opened = stack.enter_context(safetensors.safe_open(folder / file, "numpy"))
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"{folder / file} is not a safetensors file: cut short, or a git-lfs pointer?"
            ) from error
        for name in opened.keys():  # noqa: SIM118 (not a mapping)
            known = aliases.get(name, name)
            if known in stored:
                raise ValueError(f"duplicate weight {name} in {folder}, again in {file}")
            stored[known] = _Stored(opened, name)
    return stored


def load_weights(folder: str | Path, abstract_params: Any, table: Table) -> Any:
    """Reads a model's weights, one parameter at a time.

    Args:
        folder: holds `model.safetensors`, or shards and their index.
        abstract_params: what to fill: an `nnx.State` or nested dict whose leaves give shape, dtype
            and, where set, the sharding that the weight is placed on.
        table: the rows of this architecture.

    Returns:
        Arrays in the structure of `abstract_params`.

    Raises:
        ValueError: naming each unused, missing, duplicate or misshaped weight.
    """
    matched = _match(table, abstract_params)
    with contextlib.ExitStack() as stack:
        aliases: dict[str, str] = {}
        for row, leaf in matched.values():
            aliases |= row.aliases(leaf)
        stored = _open(Path(folder), aliases, stack)
        expected: dict[str, tuple[int, ...]] = {}
        tied: dict[str, str] = {}
        for row, leaf in matched.values():
            one = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            shapes = jax.eval_shape(row.parts, one)
            fused = row.part[1]
            whole = [(fused * first, *rest) for first, *rest in (s.shape for s in shapes)]
            expected |= zip(row.names(leaf), whole, strict=True)
        for row in table:
            if row.ours not in matched and row.tied_to and row.hf in stored:
                tied[row.hf] = matched[row.tied_to][0].hf
        problems = [f"missing weight {name}" for name in sorted(expected.keys() - stored.keys())]
        for name, weight in stored.items():
            if name in expected:
                if weight.shape != expected[name]:
                    problems.append(f"weight {name} has shape {weight.shape}, not {expected[name]}")
            elif name not in tied and not name.endswith(IGNORED):
                problems.append(f"unused weight {name}")
        if problems:
            raise ValueError(f"{folder} does not fit the model:\n" + "\n".join(problems))
        for name, twin in tied.items():
            if not np.array_equal(stored[name].read(), stored[twin].read()):
                raise ValueError(f"{folder}: the config ties {name} to {twin}, but they differ")

        def read(keys: Sequence[Any], leaf: Any) -> jax.Array:
            row, _ = matched[_path(keys)]
            array = row.join([stored[name].read(row.part) for name in row.names(leaf)])
            array = array.astype(leaf.dtype)
            if leaf.sharding is None:
                return jax.device_put(array)
            return jax.make_array_from_callback(array.shape, leaf.sharding, array.__getitem__)

        return jax.tree_util.tree_map_with_path(read, abstract_params)


def save_weights(
    params: Any, table: Table, folder: str | Path, max_shard_bytes: float = 5e9
) -> None:
    """Writes a model's weights under Hugging Face's names.

    Args:
        params: `nnx.State` or nested dict of arrays.
        table: the rows of this architecture.
        folder: an existing folder.
        max_shard_bytes: larger models become several files and an index.
    """
    shards: list[dict[str, np.ndarray]] = [{}]
    size = total = 0
    fused: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    for row, leaf in _match(table, params).values():
        leaf = np.asarray(leaf)
        for name, part in zip(row.names(leaf), row.parts(leaf), strict=True):
            fused[name].append(part)
            if len(fused[name]) < row.part[1]:
                continue
            parts = fused.pop(name)
            part = np.concatenate(parts) if len(parts) > 1 else part
            if shards[-1] and size + part.nbytes > max_shard_bytes:
                shards.append({})
                size = 0
            shards[-1][name] = part
            size += part.nbytes
            total += part.nbytes
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else FILE
        contiguous = {name: np.ascontiguousarray(part) for name, part in shard.items()}
        safetensors.numpy.save_file(contiguous, Path(folder) / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (Path(folder) / INDEX).write_text(json.dumps(index, indent=2) + "\n")
