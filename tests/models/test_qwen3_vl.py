# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Qwen3-VL computes what `transformers` computes, from the same weights, with no download."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from qwen_shape import qwen_tokenizer, write_shape
from tiny_qwen import (
    END,
    IMAGE,
    PIXELS,
    SMALLEST,
    START,
    VIDEO,
    Oracle,
    assert_adapter_is_merged,
    assert_agree,
    assert_asks_and_answers,
    assert_exports,
    assert_rewards,
    assert_split,
    assert_step_is_built,
    count_parameters,
    hf_model,
    patches,
)

from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.models.config import LlamaConfig
from cropvlm_jax.models.qwen3_vl.architecture import ARCHITECTURE
from cropvlm_jax.models.qwen3_vl.config import Qwen3Config, Qwen3VisionConfig, interleaved
from cropvlm_jax.models.qwen3_vl.vision import interpolated, patch_places

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A tiny shape, and the rows and columns of the pictures of two rows of a batch."""

    grids: list[list[tuple[int, int]]]
    patch: int = 4
    merge: int = 2
    taken: tuple[int, ...] = (0, 2)  # layers of the tower, of three
    side: int = 5  # of the square of position embeddings
    width: int = 24
    heads: tuple[int, int, int] = (4, 2, 8)  # queries', keys', channels
    section: tuple[int, int, int] = (2, 1, 1)
    tied: bool = False

    @property
    def config(self) -> Qwen3Config:
        vision = Qwen3VisionConfig(
            3, 24, 40, 2, self.width, self.patch, self.merge, self.side**2, self.taken
        )
        text = LlamaConfig(
            101,
            self.width,
            72,
            3,
            *self.heads,
            rope_theta=1e4,
            rms_norm_eps=1e-6,
            tie_word_embeddings=self.tied,
            qk_norm=True,
            mrope_section=interleaved(self.section, self.heads[2] // 2),
        )
        return Qwen3Config(vision, text, IMAGE, VIDEO, START, END)


TINY = {
    "gqa2": Tiny([[(4, 8)], [(3, 9)]]),
    "mha-tied-thin": Tiny(
        [[(1, 11)], [(11, 1)]],
        taken=(1,),
        side=3,
        heads=(2, 2, 16),
        section=(4, 1, 3),
        tied=True,
    ),
    "gqa3-two-pictures": Tiny(
        [[(7, 5), (2, 2)], [(1, 1), (5, 7)]],
        patch=6,
        taken=(0, 1, 2),
        heads=(6, 2, 8),
        section=(0, 2, 2),
    ),
    "gqa4-merge3-tied": Tiny(
        [[(3, 3), (5, 2)], [(4, 4), (1, 6)]],
        merge=3,
        taken=(1, 2),
        side=48,
        heads=(4, 1, 12),
        section=(2, 2, 2),
        tied=True,
    ),
    "last-layer-wide": Tiny(
        [[(5, 6)], [(6, 6)]], patch=14, taken=(2,), side=7, width=40, heads=(4, 4, 20)
    ),
    "no-merge": Tiny([[(3, 7)], [(6, 2)]], merge=1, taken=(0, 1), section=(4, 0, 0)),
}


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_agree(name, tmp_path):
    assert_agree(TINY[name].config, TINY[name].grids, tmp_path, bound=2e-5)


@pytest.mark.parametrize("pairs", [4, 6, 64])
def test_axes_take_turns_as_in_transformers(pairs):
    rotary = transformers.models.qwen3_vl.modeling_qwen3_vl.Qwen3VLTextRotaryEmbedding
    rng = np.random.default_rng(0)
    for section in [(24, 20, 20), *rng.integers(0, pairs, (20, 3)).tolist()]:
        axes = torch.arange(3)[:, None].repeat(1, pairs)
        owner = type("Rotary", (), {"mrope_section": section})()
        expected = rotary.recomposition_frequencies(owner, axes)[:pairs]
        runs = interleaved(tuple(section), pairs)
        actual = np.repeat(np.arange(len(runs)) % 3, runs)
        np.testing.assert_array_equal(actual, expected)
        assert interleaved(tuple(sum(runs[i::3]) for i in range(3)), pairs) == runs


def test_positions_are_interpolated_as_in_transformers():
    vision_utils = pytest.importorskip("transformers.vision_utils")
    rng = np.random.default_rng(0)
    grids = ((1, 1), (24, 24), (3, 70), (47, 2))
    room = max(rows * columns for rows, columns in grids) + 2
    for side, merge in ((48, 2), (5, 3), (1, 1)):
        table = rng.normal(size=(side**2, 3)).astype(np.float32)
        for rows, columns in grids:
            thw = torch.tensor([[1, rows * merge, columns * merge]])
            index, weights = vision_utils.get_vision_interpolation_indices_and_weights(
                thw, side, align_corners=True, spatial_merge_size=merge
            )
            expected = (table[index.numpy()] * weights.numpy()[..., None]).sum(1)
            grid = jnp.array([[rows, columns]])
            places = patch_places(room, grid, merge)
            actual = np.asarray(interpolated(jnp.asarray(table), places, grid * merge)[0])
            assert np.isfinite(actual).all()
            np.testing.assert_allclose(actual[: len(expected)], expected, rtol=0, atol=2e-5)


# The released chat template, without tools and videos.
CHAT_TEMPLATE = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role != 'system' %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- else %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
HALF = [0.5, 0.5, 0.5]
# The image processor of a release; here of a tiny model's patches and sizes.
SETTINGS = {
    "size": {"longest_edge": 1_048_576, "shortest_edge": SMALLEST},
    "patch_size": 4,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": HALF,
    "image_std": HALF,
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model as transformers saves it, and with it what the Hub has beside the weights."""
    folder = tmp_path_factory.mktemp("qwen3")
    tokenizer = qwen_tokenizer((*tiny.QUESTIONS, *tiny.ANSWERS))
    config = TINY["gqa2"].config
    text = dataclasses.replace(
        config.text, vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=512
    )
    hf_model(write_shape(folder, Qwen3Config(config.vision, text), tokenizer)).save_pretrained(
        folder
    )
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (folder / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    (folder / "video_preprocessor_config.json").write_text(json.dumps({"fps": 2}))
    return folder


def image_processor(most: int):
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    size = {"shortest_edge": SMALLEST, "longest_edge": most}
    settings = {key: SETTINGS[key] for key in ("patch_size", "merge_size")}
    return module.Qwen2VLImageProcessorPil(size=size, image_mean=HALF, image_std=HALF, **settings)


@pytest.fixture(scope="module")
def oracle(folder):
    class Processor(transformers.Qwen3VLProcessor):
        """The released processor without that of videos, which wants torchvision."""

        def check_argument_for_proper_class(self, name, argument):
            if name != "video_processor":
                return super().check_argument_for_proper_class(name, argument)

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    processor = Processor(image_processor(PIXELS), tokenizer, None, chat_template=CHAT_TEMPLATE)

    def process(pictures, messages, add_generation_prompt):
        shown = [{"type": "image", "image": Image.fromarray(p)} for p in pictures]
        asked, *replied = messages
        asked = asked | {"content": shown + asked["content"][len(pictures) :]}
        inputs = processor.apply_chat_template(
            [asked, *replied],
            add_generation_prompt=add_generation_prompt,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        return {key: value for key, value in inputs.items() if key != "attention_mask"}

    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    return Oracle(folder, model, process)


def test_a_target_asks_and_answers_as_transformers(oracle):
    assert_asks_and_answers(oracle)


def test_the_reward_in_the_step_is_what_transformers_says_of_the_crops(oracle):
    assert_rewards(oracle)


def test_transformers_loads_an_export(folder, tmp_path, caplog):
    source = Pretrained.open(folder)
    assert source.config.limits.max_pixels == 512**2  # not the folder's
    assert ARCHITECTURE.box_frame == "thousandths"
    assert_exports(folder, tmp_path / "export", caplog)
    written = json.loads((tmp_path / "export" / "preprocessor_config.json").read_text())
    assert written["size"] == SETTINGS["size"] and written["image_mean"] == HALF
    assert (tmp_path / "export" / "video_preprocessor_config.json").is_file()


def test_pixels_equal_the_image_processor_s(folder):
    source = Pretrained.open(folder, processor={"max_pixels": PIXELS})
    processor, rng = image_processor(PIXELS), np.random.default_rng(0)
    for height, width in ((40, 90), (1, 7), (64, 64), (333, 20), (5, 800)):
        picture = rng.integers(0, 256, (height, width, 3), np.uint8)
        seen, (rows, columns) = source.see(picture, 0)
        theirs = processor([Image.fromarray(picture)], return_tensors="np")
        assert theirs["image_grid_thw"].tolist() == [[1, 2 * rows, 2 * columns]]
        tiles = seen.tiles[0, : rows * columns]
        levels = np.round(theirs["pixel_values"] * 127.5 + 127.5)
        np.testing.assert_array_equal(patches(tiles, source.config), levels)
        assert source.image_tokens(height, width, 0) == rows * columns


@pytest.mark.parametrize(
    "targets",
    [
        ["qkv", "q_proj"],
        r".*visual.*\.(proj|linear_fc1|linear_fc2)",  # those of the stacked mergers among them
    ],
)
def test_an_adapter_of_peft_is_merged(targets, tmp_path):
    assert_adapter_is_merged(TINY["gqa2"].config, TINY["gqa2"].grids, targets, tmp_path)


# The keys that matter of the Hub's config.json of the 4B.
HUB = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "image_token_id": 151655,
    "model_type": "qwen3_vl",
    "text_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "dtype": "bfloat16",
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2560,
        "initializer_range": 0.02,
        "intermediate_size": 9728,
        "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": [24, 20, 20],
            "rope_type": "default",
        },
        "rope_theta": 5000000,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": 151936,
    },
    "tie_word_embeddings": True,
    "transformers_version": "4.57.0.dev0",
    "video_token_id": 151656,
    "vision_config": {
        "deepstack_visual_indexes": [5, 11, 17],
        "depth": 24,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1024,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 4096,
        "model_type": "qwen3_vl",
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 2560,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "vision_end_token_id": 151653,
    "vision_start_token_id": 151652,
}


def changed(text: dict | None = None, vision: dict | None = None, **top) -> dict:
    """The config of the 4B with other values."""
    parts = {
        "text_config": HUB["text_config"] | (text or {}),
        "vision_config": HUB["vision_config"] | (vision or {}),
    }
    return HUB | parts | top


def test_released_configs():
    small = dict(hidden_size=2048, intermediate_size=6144, num_hidden_layers=28)
    large = dict(hidden_size=4096, intermediate_size=12288, tie_word_embeddings=False)
    tower = dict(depth=27, hidden_size=1152, intermediate_size=4304, out_hidden_size=4096)
    released = {
        2_127_532_032: (
            Qwen3Config.qwen3_vl_2b(),
            changed(small | dict(num_attention_heads=16), dict(out_hidden_size=2048)),
        ),
        4_437_815_808: (Qwen3Config.qwen3_vl_4b(), HUB),
        8_767_123_696: (
            Qwen3Config.qwen3_vl_8b(),
            changed(
                large,
                tower | dict(deepstack_visual_indexes=[8, 16, 24]),
                tie_word_embeddings=False,
            ),
        ),
    }
    for parameters, (config, stored) in released.items():
        assert Qwen3Config.from_hf(stored) == config
        assert Qwen3Config.from_hf(config.to_hf()) == config
        assert count_parameters(config) == parameters


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (changed(dict(attention_bias=True)), "attention_bias=True"),
        (changed(dict(hidden_act="gelu")), "hidden_act='gelu'"),
        (changed(dict(rope_scaling={"mrope_interleaved": False})), "mrope_interleaved=False"),
        (changed(dict(rope_scaling={"rope_type": "yarn"})), "rope_type='yarn'"),
        (changed(dict(rope_scaling={"mrope_section": [32, 32]})), r"mrope_section=\[32, 32\]"),
        (changed(dict(model_type="qwen3_vl_moe_text")), "qwen3_vl_moe_text"),
        (changed(vision=dict(hidden_act="gelu")), "hidden_act='gelu'"),
        (changed(vision=dict(patch_size=[16, 16])), r"patch_size=\[16, 16\]"),
        (changed(vision=dict(num_position_embeddings=2300)), "num_position_embeddings=2300"),
        (changed(vision=dict(out_hidden_size=9)), "out_hidden_size=9"),
        (changed(vision=dict(hidden_size=1000)), "hidden_size=1000"),
        (changed(vision=dict(deepstack_visual_indexes=[])), "one at least"),
        (changed(vision=dict(deepstack_visual_indexes=[11, 5])), r"\[11, 5\]"),
        (changed(vision=dict(deepstack_visual_indexes=[5, 24])), r"\[5, 24\]"),
        (changed(dict(num_hidden_layers=2)), "num_hidden_layers=2"),
        (changed(model_type="qwen3_vl_moe"), "qwen3_vl_moe"),
    ],
)
def test_what_is_not_supported_is_refused(stored, message):
    with pytest.raises(ValueError, match=message):
        Qwen3Config.from_hf(stored)


def nulls(names: str) -> dict[str, None]:
    return dict.fromkeys(names.split())


RELEASED = SETTINGS | dict(
    size={"longest_edge": 16_777_216, "shortest_edge": 65_536}, patch_size=16
)
NULLS = nulls("crop_size device do_center_crop do_pad max_pixels min_pixels pad_size")


@pytest.mark.parametrize("extra", [{}, NULLS, {"resample": 3, "rescale_factor": 1 / 255}])
def test_the_released_image_processor_is_read(extra):
    config, _ = ARCHITECTURE.configure(Qwen3Config.qwen3_vl_4b(), RELEASED | extra, {})
    limits = config.limits
    assert (limits.min_pixels, limits.max_pixels, limits.factor) == (65_536, 512**2, 32)
    config, _ = ARCHITECTURE.configure(config, RELEASED | extra, {"max_pixels": 1024**2})
    assert config.image_seq_len == 1024
    written = ARCHITECTURE.image_settings(config, 0, RELEASED | extra)
    assert written["size"] == RELEASED["size"] and written["image_std"] == HALF


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_mean": [0.48145466, 0.4578275, 0.40821073]}, "image_mean"),
        ({"image_std": None}, "image_std"),
        ({"patch_size": 14}, "patch_size=14"),
        ({"merge_size": 1}, "merge_size=1"),
        ({"resample": 2}, "resample=2"),
        ({"do_rescale": False}, "do_rescale"),
        ({"size": {"height": 448, "width": 448}}, "size"),
        ({"size": {"longest_edge": 16_777_216, "shortest_edge": 3136}}, "min_pixels=3136"),
        ({"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessor"),
    ],
)
def test_settings_of_another_processor_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ARCHITECTURE.configure(Qwen3Config.qwen3_vl_4b(), RELEASED | change, {})


@pytest.mark.parametrize("absent", ["image_mean", "image_std", "patch_size"])
def test_an_absent_setting_is_what_transformers_takes_for_it(absent):
    settings = {key: value for key, value in RELEASED.items() if key != absent}
    with pytest.raises(ValueError, match=absent):
        ARCHITECTURE.configure(Qwen3Config.qwen3_vl_4b(), settings, {})


def test_8b_weights_are_split_over_fsdp_and_tensor():
    assert_split(Qwen3Config.qwen3_vl_8b())


def test_the_step_with_an_8b_target_is_built_without_weights(tmp_path):
    assert_step_is_built(Qwen3Config.qwen3_vl_8b(), tmp_path)
