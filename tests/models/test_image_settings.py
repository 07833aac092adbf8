# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Settings of image processors: transformers sees the same pixels, or the setting is refused."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_llava
from PIL import Image
from qwen_shape import qwen_tokenizer

from cropvlm_jax.hub.export import export_processor
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.hub.processors import FLAT, NESTED
from cropvlm_jax.models.llava.config import LlavaConfig
from cropvlm_jax.models.qwen2_5_vl.config import QwenConfig
from cropvlm_jax.models.qwen3_vl.config import Qwen3Config
from cropvlm_jax.models.smolvlm.config import SmolVLMConfig

transformers = pytest.importorskip("transformers")
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (  # noqa: E402
    Qwen2VLImageProcessorPil,
)

HALF = [0.5] * 3
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
ON = {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True}
ON |= {"rescale_factor": 0.00392156862745098}


def released_smolvlm(tile: int = 512, kind: str = "Idefics3") -> dict[str, Any]:
    """The flat file of the released models."""
    return ON | {
        "do_image_splitting": True,
        "do_pad": True,
        "image_mean": HALF,
        "image_std": HALF,
        "image_processor_type": f"{kind}ImageProcessor",
        "max_image_size": {"longest_edge": tile},
        "processor_class": f"{kind}Processor",
        "resample": 1,
        "size": {"longest_edge": 4 * tile},
    }


LLAVA = ON | {
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "image_mean": MEAN,
    "image_processor_type": "CLIPImageProcessor",
    "image_std": STD,
    "processor_class": "LlavaProcessor",
    "resample": 3,
    "size": {"shortest_edge": 336},
}
LLAVA_PROCESSOR = {
    "image_token": "<image>",
    "num_additional_image_tokens": 1,
    "patch_size": 14,
    "processor_class": "LlavaProcessor",
    "vision_feature_select_strategy": "default",
}
LLAVA_UNSET = {"patch_size": None, "vision_feature_select_strategy": None}
LLAVA_UNSET |= {"num_additional_image_tokens": 0}
QWEN = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": MEAN,
    "image_std": STD,
    "image_processor_type": "Qwen2_5_VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}
# What transformers 5 wrote before its release for what is not set.
UNSET = dict.fromkeys(
    "crop_size device disable_grouping do_center_crop do_pad image_seq_length input_data_format "
    "pad_size return_tensors".split()
)
QWEN_5 = ON | {
    "data_format": "channels_first",
    "default_to_square": True,
    "image_mean": MEAN,
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "image_std": STD,
    "merge_size": 2,
    "patch_size": 14,
    "resample": 3,
    "size": {"longest_edge": 16777216, "shortest_edge": 65856},
    "temporal_patch_size": 2,
}
SMALL = {"longest_edge": 7056, "shortest_edge": 784}
QWEN_NULLS = QWEN_5 | UNSET | {"min_pixels": None, "max_pixels": None, "processor_class": "X"}
QWEN3 = {  # as the Hub has it
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": HALF,
    "image_std": HALF,
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}
QWEN3_5 = QWEN_5 | QWEN3 | {"default_to_square": True}
QWEN3_NULLS = QWEN3_5 | UNSET | {"min_pixels": None, "max_pixels": None}
QWEN3_CHANGED = {key: QWEN3[key] for key in ("size", "patch_size", "image_mean", "image_std")}
SMOLVLM_5 = released_smolvlm() | {"image_processor_type": "SmolVLMImageProcessorFast"}
SMOLVLM_NULLS = SMOLVLM_5 | {key: None for key in UNSET if key != "do_pad"}
LLAVA_NULLS = LLAVA | {"image_processor_type": "CLIPImageProcessorFast", "do_pad": None}
LLAVA_NULLS |= {"device": None, "pad_size": None, "return_tensors": None}
LLAVA_OLD = {
    "crop_size": 336,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": MEAN,
    "image_std": STD,
    "resample": 3,
    "size": 336,
}


def write_folder(
    folder: pathlib.Path, kind: str, flat: Any = None, nested: Any = None, **processor: Any
) -> pathlib.Path:
    """A model folder of a released shape, without weights."""
    if kind.startswith("qwen"):
        config: Any = Qwen3Config.qwen3_vl_8b() if "3" in kind else QwenConfig.qwen2_5_vl_7b()
        tokenizer = qwen_tokenizer()
        ids = {
            "image_token_id": "<|image_pad|>",
            "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
        }
    else:
        small, large = SmolVLMConfig.smolvlm_256m(), SmolVLMConfig.smolvlm_2_2b()
        shapes = {"smolvlm": small, "smolvlm-2.2b": large, "llava": LlavaConfig.llava_7b()}
        config, ids = shapes[kind], {"image_token_id": "<image>"}
        tokenizer = tiny_llava.TOKENIZER if kind == "llava" else tiny.TOKENIZER
    ids = {name: tokenizer.token_to_id(token) for name, token in ids.items()}
    config = dataclasses.replace(config, **ids)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    tokenizer.save(str(folder / "tokenizer.json"))
    if flat is not None:
        (folder / FLAT).write_text(json.dumps(flat))
    if nested is not None:
        processor["image_processor"] = nested
    if processor:
        (folder / NESTED).write_text(json.dumps(processor))
    return folder


def ours(source: Pretrained, picture: np.ndarray) -> np.ndarray:
    """What the model sees, normalised and laid out as in `pixel_values` of one picture."""
    seen, grid = source.see(picture, source.longest_edge)
    kind = source.config.model_type
    mean, std = (MEAN, STD) if kind in ("llava", "qwen2_5_vl") else (HALF, HALF)
    if not kind.startswith("qwen"):
        return ((seen / 255 - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)
    tiles = (seen.tiles[0, : grid[0] * grid[1]] / 255 - np.array(mean)) / np.array(std)
    patch = source.config.vision.patch_size
    x = tiles.reshape(-1, 2, patch, 2, patch, 3).transpose(0, 1, 3, 5, 2, 4)
    return np.repeat(x[:, :, :, :, None], 2, axis=4).reshape(len(tiles) * 4, -1)


def theirs(folder: pathlib.Path, picture: np.ndarray) -> np.ndarray:
    """`pixel_values` of one picture, by transformers."""
    kind = transformers.AutoImageProcessor
    if json.loads((folder / "config.json").read_text())["model_type"].startswith("qwen"):
        kind = Qwen2VLImageProcessorPil  # the name in the first release is not known any more
    processor = kind.from_pretrained(folder)
    pixels = processor([Image.fromarray(picture)], return_tensors="np")["pixel_values"]
    return pixels[0] if pixels.ndim == 5 else pixels


def make_picture(height: int = 60, width: int = 100) -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), 2))


SPELLINGS = {
    "smolvlm-1": ("smolvlm", dict(flat=released_smolvlm(), image_seq_len=64)),
    "smolvlm-2": ("smolvlm", dict(flat=released_smolvlm(kind="SmolVLM"), image_seq_len=64)),
    "smolvlm-2.2b": ("smolvlm-2.2b", dict(flat=released_smolvlm(384), image_seq_len=81)),
    "smolvlm-nested": ("smolvlm", dict(nested=SMOLVLM_5)),
    "smolvlm-nulls": ("smolvlm", dict(nested=SMOLVLM_NULLS, image_seq_len=64)),
    "smolvlm-no-pad": ("smolvlm", dict(flat=released_smolvlm() | {"do_pad": None})),
    "smolvlm-whole": ("smolvlm", dict(flat=released_smolvlm() | {"do_image_splitting": False})),
    "smolvlm-768": ("smolvlm", dict(flat=released_smolvlm() | {"size": {"longest_edge": 768}})),
    "smolvlm-one-mean": ("smolvlm", dict(flat=released_smolvlm() | {"image_mean": 0.5})),
    "llava": ("llava", dict(flat=LLAVA)),
    "llava-processor": ("llava", dict(flat=LLAVA, **LLAVA_PROCESSOR)),
    "llava-4.44": ("llava", dict(flat=LLAVA, patch_size=14, image_token="<image>")),
    "llava-4.46": ("llava", dict(flat=LLAVA, **LLAVA_UNSET)),
    "llava-nested": ("llava", dict(nested=LLAVA)),
    "llava-nulls": ("llava", dict(nested=LLAVA_NULLS)),
    "llava-old": ("llava", dict(flat=LLAVA_OLD)),
    "llava-pad-of-batches": ("llava", dict(flat=LLAVA | {"do_pad": True})),
    "llava-pad": (
        "llava",
        dict(flat=LLAVA | {"do_pad": True, "image_processor_type": "LlavaImageProcessor"}),
    ),
    "qwen": ("qwen", dict(flat=QWEN)),
    "qwen-4.49": ("qwen", dict(flat=QWEN | {"image_processor_type": "Qwen2VLImageProcessor"})),
    "qwen-size": (
        "qwen",
        dict(flat=QWEN_5 | {"size": {"longest_edge": 7056, "shortest_edge": 784}}),
    ),
    "qwen-both": (
        "qwen",
        dict(
            flat=QWEN | {"size": {"shortest_edge": 784, "longest_edge": 1568}, "max_pixels": 7056}
        ),
    ),
    "qwen-nested": ("qwen", dict(nested=QWEN_5)),
    "qwen-nulls": ("qwen", dict(nested=QWEN_NULLS)),
    "qwen3": ("qwen3", dict(flat=QWEN3)),
    "qwen3-nested": ("qwen3", dict(nested=QWEN3_5)),
    "qwen3-nulls": ("qwen3", dict(nested=QWEN3_NULLS)),
    "qwen3-changed": ("qwen3", dict(nested=QWEN3_CHANGED)),  # only what no default is
    "qwen-rounded": ("qwen", dict(flat=QWEN | {"image_mean": [0.48145467, 0.4578275, 0.4082107]})),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_gives_the_pixels_of_transformers(name, tmp_path):
    kind, files = SPELLINGS[name]
    folder = write_folder(tmp_path / "model", kind, **files)
    source, picture = Pretrained.open(folder), make_picture()
    np.testing.assert_allclose(ours(source, picture), theirs(folder, picture), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", SPELLINGS)
def test_an_export_says_what_was_seen(name, tmp_path):
    """In both files, to transformers and to us, under names that transformers knows."""
    kind, files = SPELLINGS[name]
    folder, out = write_folder(tmp_path / "model", kind, **files), tmp_path / "out"
    source, picture = Pretrained.open(folder), make_picture()
    edge = 640 if kind.startswith("smolvlm") else source.longest_edge
    source = dataclasses.replace(source, longest_edge=edge)
    export_processor(out, source, edge)
    shutil.copyfile(folder / "config.json", out / "config.json")
    seen = ours(source, picture)
    np.testing.assert_allclose(theirs(out, picture), seen, rtol=0, atol=2e-6)
    transformers.AutoImageProcessor.from_pretrained(out)
    again = Pretrained.open(out)
    assert (again.config, again.longest_edge) == (source.config, edge)

    flat, processor = (json.loads((out / name).read_text()) for name in (FLAT, NESTED))
    assert processor["image_processor"].items() <= flat.items()
    assert flat.keys() - processor["image_processor"] <= {"processor_class"}
    assert not flat["image_processor_type"].endswith("Fast")
    for value in (*flat.values(), *processor.values()):
        assert value is not None
    for file in (FLAT, NESTED):  # each is enough
        content = (out / file).read_text()
        (out / file).unlink()
        np.testing.assert_allclose(theirs(out, picture), seen, rtol=0, atol=2e-6)
        assert Pretrained.open(out).config == source.config
        (out / file).write_text(content)


def test_an_export_has_what_the_user_changed(tmp_path):
    """Padding, or a number of pixels over the one that is the default here."""
    picture = make_picture(900, 1100)
    for kind, settings, change in (
        ("llava", LLAVA, {"do_pad": True}),
        ("llava", LLAVA | {"image_processor_type": "LlavaImageProcessor"}, {"do_pad": True}),
        ("qwen", QWEN, {"max_pixels": 602112}),
        ("qwen3", QWEN3, {"max_pixels": 720896}),
        ("qwen", QWEN_5, {"max_pixels": 100352}),
    ):
        folder, out = write_folder(tmp_path / "model", kind, settings), tmp_path / "out"
        source = Pretrained.open(folder, processor=change)
        export_processor(out, source, source.longest_edge)
        shutil.copyfile(folder / "config.json", out / "config.json")
        np.testing.assert_allclose(theirs(out, picture), ours(source, picture), rtol=0, atol=2e-6)
    export_processor(out, Pretrained.open(folder), 1)
    stored = json.loads((out / FLAT).read_text())
    assert stored["max_pixels"] == stored["size"]["longest_edge"] == 16777216  # not our default


def test_without_splitting_a_picture_is_one_tile(tmp_path):
    """In two passes, as transformers does it, whatever the longest edge."""
    for value in (False, None):
        settings = released_smolvlm() | {"do_image_splitting": value}
        source = Pretrained.open(write_folder(tmp_path / str(value), "smolvlm", settings))
        assert not source.config.split and source.longest_edge == 2048
        tiles, grid = source.see(make_picture(), 2048)
        assert len(tiles) == 1 and grid == (0, 0)
        assert source.architecture.grid(source.config, 60, 100, 2048) == (0, 0)
        assert source.image_tokens(60, 100, 2048) == 64
        assert not source.architecture.splits(source.config, 2048)
    tiled = Pretrained.open(write_folder(tmp_path / "tiled", "smolvlm", released_smolvlm()))
    assert len(tiled.see(make_picture(), 2048)[0]) == 13
    assert tiled.architecture.splits(tiled.config, 2048)
    assert not tiled.architecture.splits(tiled.config, 512)


REFUSED = {
    "smolvlm": [
        {"do_resize": False},
        {"do_rescale": False},
        {"do_normalize": False},
        {"do_convert_rgb": False},
        {"do_normalize": None},
        {"do_center_crop": True},
        {"do_resize": "yes"},
        {"do_image_splitting": "false"},
        {"rescale_factor": 1 / 127.5},
        {"rescale_factor": None},
        {"image_mean": MEAN},
        {"image_mean": None},
        {"image_mean": [0.5, 0.5]},
        {"image_std": [0.5, 0.5, 0.4]},
        {"image_std": 1},
        {"resample": 3},
        {"resample": None},
        {"resample": "lanczos"},
        {"size": 2048},
        {"size": None},
        {"size": {"height": 512, "width": 512}},
        {"size": {"longest_edge": 0}},
        {"size": {"longest_edge": 1024, "shortest_edge": None}},
        {"size": {"longest_edge": 512.5}},
        {"size": {"longest_edge": "2048"}},
        {"size": {"shortest_edge": 378, "longest_edge": 980}},
        {"max_image_size": {"longest_edge": 384}},
        {"max_image_size": None},
        {"max_image_size": {"longest_edge": None}},
        {"max_image_size": {"height": 512, "width": 512}},
        {"image_processor_type": "SiglipImageProcessor"},
        {"image_processor_type": None},
    ],
    "llava": [
        {"do_center_crop": False},
        {"do_center_crop": None},
        {"do_resize": False},
        {"do_rescale": False},
        {"do_normalize": False},
        {"do_convert_rgb": False},
        {"do_pad": "square"},
        {"rescale_factor": 1},
        {"image_mean": HALF},
        {"image_std": None},
        {"resample": 2},
        {"size": 224},
        {"size": {"height": 336, "width": 336}},
        {"size": {"shortest_edge": 224}},
        {"size": None},
        {"crop_size": None},
        {"crop_size": {"height": 336, "width": 224}},
        {"size": 336, "default_to_square": True},
        {"use_square_size": True},
        {"pad_size": {"height": 400, "width": 400}},
        {"image_processor_type": "LlavaNextImageProcessor"},
    ],
    "qwen": [
        {"do_resize": False},
        {"do_resize": None},
        {"do_center_crop": True},
        {"do_rescale": False},
        {"do_normalize": False},
        {"do_convert_rgb": False},
        {"rescale_factor": 0.0039},
        {"image_mean": HALF},
        {"image_std": HALF},
        {"resample": 2},
        {"patch_size": 16},
        {"patch_size": None},
        {"merge_size": 1},
        {"temporal_patch_size": 1},
        {"min_pixels": "3136"},
        {"min_pixels": -1},
        {"min_pixels": 3000},
        {"max_pixels": 0},
        {"max_pixels": 1e6},
        {"max_pixels": float("nan")},
        {"size": None},
        {"size": {"height": 448, "width": 448}},
        {"size": [448, 448]},
        {"image_processor_type": "CLIPImageProcessor"},
    ],
}
RELEASED = {"smolvlm": released_smolvlm(), "llava": LLAVA, "qwen": QWEN}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    return {kind: write_folder(root / kind, kind) for kind in RELEASED}


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize(
    ("kind", "change"),
    [(kind, change) for kind, changes in REFUSED.items() for change in changes],
    ids=str,
)
def test_other_settings_are_refused_by_folder_and_key(kind, change, nested, folders):
    settings, folder = RELEASED[kind] | change, folders[kind]
    for name in (FLAT, NESTED):
        (folder / name).unlink(missing_ok=True)
    file, content = (NESTED, {"image_processor": settings}) if nested else (FLAT, settings)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ValueError) as error:
        Pretrained.open(folder)
    message = str(error.value)
    assert message.startswith(f"{folder / file}: ") and "\n" not in message
    assert next(iter(change)) in message


def test_a_nested_image_processor_replaces_the_flat_file(tmp_path):
    flat = released_smolvlm() | {"do_image_splitting": False, "size": {"longest_edge": 512}}
    nested = {"size": {"longest_edge": 1024}}  # the rest is what the class says, not what flat says
    source = Pretrained.open(write_folder(tmp_path / "both", "smolvlm", flat, nested))
    assert source.config.split and source.longest_edge == 1024
    source = Pretrained.open(write_folder(tmp_path / "empty", "smolvlm", flat, {}))
    assert source.config.split and source.longest_edge == 2048
    folder = write_folder(tmp_path / "null", "smolvlm", flat, image_processor=None)
    assert Pretrained.open(folder).longest_edge == 512
    for image_processor in ("SmolVLMImageProcessor", [1], 5):
        folder = write_folder(tmp_path / "bad", "smolvlm", flat, image_processor)
        with pytest.raises(ValueError, match=rf"{NESTED}: image_processor=.* is no object"):
            Pretrained.open(folder)


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("smolvlm", {"image_seq_len": 81}),
        ("smolvlm", {"image_seq_len": None}),
        ("smolvlm", {"image_seq_len": "64"}),
        ("smolvlm-2.2b", {"image_seq_len": 64}),
        ("llava", {"patch_size": 16}),
        ("llava", {"num_additional_image_tokens": 0, "vision_feature_select_strategy": "default"}),
        ("llava", {"num_additional_image_tokens": 1}),
        ("llava", {"num_additional_image_tokens": 2, "vision_feature_select_strategy": "default"}),
        ("llava", {"vision_feature_select_strategy": "full"}),
    ],
    ids=str,
)
def test_a_processor_that_contradicts_the_shape_is_refused(kind, setting, tmp_path):
    folder = write_folder(tmp_path / "model", kind, **setting)
    with pytest.raises(ValueError, match=f"{NESTED}: {next(iter(setting))}="):
        Pretrained.open(folder)


def test_what_the_user_changes_is_not_blamed_on_the_folder(tmp_path):
    folder = write_folder(tmp_path / "model", "qwen", QWEN)
    assert Pretrained.open(folder, processor={"max_pixels": 7056}).config.limits.max_pixels == 7056
    for value in (100, "7056", -7056, 1.5):
        with pytest.raises(ValueError, match="max_pixels=") as error:
            Pretrained.open(folder, processor={"max_pixels": value})
        assert FLAT not in str(error.value)
