# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Wrong settings of `cropvlm train`, as flags and in files: one line, and nothing is made."""

import inspect
import pathlib
import re

import forked
import jax
import pytest

from cropvlm_jax import parallel

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = f"--config={ROOT / 'experiments/zoom_digits.py'}"
SOURCE = "data.sources.zoom_digits"


def train(commands: list[list[str]]) -> list[tuple[int, str]]:
    """Exit code and output of `cropvlm train` for each command line."""
    program = ("-m", "cropvlm_jax.apps.train")
    done = [forked.python(*program, *arguments) for arguments in commands]
    return [(each.returncode, each.stdout + each.stderr) for each in done]


# Setting, value as a flag, and what the message says that it takes.
WRONG = [
    ("batch_size", "0", "between 1 and 65536"),
    ("batch_size", "-4", "between 1 and 65536"),
    ("batch_size", "nan", "between 1 and 65536"),
    ("batch_size", "2.5", "between 1 and 65536"),
    ("gradient_accumulation_steps", "0", "between 1 and 65536"),
    ("clip_norm", "0", "above 0 and at most 1000000"),
    ("clip_norm", "inf", "above 0 and at most 1000000"),
    ("learning_rate", "nan", "above 0 and at most 1"),
    ("learning_rate", "-0.5", "above 0 and at most 1"),
    ("learning_rate", "3.0", "above 0 and at most 1"),
    ("learning_rate", "fast", "above 0 and at most 1"),
    ("warmup", "1.5", "between 0 and 1"),
    ("adam_b2", "1", "at least 0 and below 1"),
    ("weight_decay", "-0.1", "between 0 and 10"),
    ("weight_decay", "nan", "between 0 and 10"),
    ("epochs", "-1", "between 0 and 10000"),
    ("steps", "-1", "between 0 and 10000000"),
    ("steps", "99999999999", "between 0 and 10000000"),
    ("seed", "-1", "between 0 and 2147483647"),
    ("seed", "True", "between 0 and 2147483647"),
    ("remat", "3", "True or False"),
    ("export_every", "-1", "between 0 and"),
    ("lora.rank", "-2", "between 1 and 8192"),
    ("lora.alpha", "0", "above 0"),
    ("lora.dropout", "1", "at least 0 and below 1"),
    ("grpo.num_generations", "1", "between 2 and 65536"),
    ("grpo.temperature", "0", "between 0.01 and 100"),
    ("grpo.temperature", "nan", "between 0.01 and 100"),
    ("grpo.beta", "-0.1", "between 0 and 1000"),
    ("grpo.epsilon", "-0.1", "between 0 and 1"),
    ("grpo.epsilon_high", "nan", "between 0 and 10"),
    ("grpo.format_weight", "-1", "between 0 and 1000"),
    ("grpo.likelihood_weight", "inf", "between 0 and 1000"),
    ("grpo.accuracy_weight", "-1", "between 0 and 1000"),
    ("grpo.area_weight", "nan", "between 0 and 1000"),
    ("grpo.answer_tokens", "0", "between 1 and 1024"),
    ("grpo.reward_chunk", "0", "between 1 and 65536"),
    ("grpo.normaliser", "a", "between 1 and 65536"),
    ("grpo.num_iterations", "0", "between 1 and 100"),
    ("data.longest_edge", "0", "between 1 and 16384"),
    ("data.canvas", "(0,512)", "data.canvas[0]=0 is not a whole number between 1 and 16384"),
    ("data.canvas", "512", "data.canvas=(512,) is not 2 values"),
    ("data.question_tokens", "0", "between 1 and 8192"),
    ("data.answer_tokens", "-1", "between 1 and 1024"),
    ("data.workers", "-1", "between 0 and 256"),
    ("eval.every", "-1", "between 0 and"),
    ("eval.examples", "0", "between 1 and"),
    ("checkpoint.every", "-1", "between 0 and"),
    ("checkpoint.keep", "0", "between 1 and"),
    ("mesh.data", "0", "between 1 and 65536, or -1"),
    ("mesh.fsdp", "0", "between 1 and 65536"),
    ("target_processor.max_pixels", "0", "between 1 and"),
    (f"{SOURCE}.weight", "-1", "between 0 and 1000000"),
    (f"{SOURCE}.part", "(0,2)", "part[1]=2 is not a number between 0 and 1"),
    (f"{SOURCE}.part", "(0,0.5)", "would be ignored"),
    (f"{SOURCE}.folder", "data/mine", "would be ignored"),
    ("grpo", "3", "--config.grpo is a section; the settings in it are: abstain"),
    ("attention", "flash", "is not one of 'auto', 'xla'"),
    ("stage", "rl", "is not one of 'sft', 'grpo'"),
    ("lr_scheduler_type", "linear", "is not one of 'cosine', 'constant'"),
    ("grpo.kl_loss_type", "k1", "is not one of 'exact', 'k3'"),
    ("cropper", "", "cropper='': say which model, by a folder or a Hugging Face id"),
    ("target", "", "target='': say which model, by a folder or a Hugging Face id"),
    ("stpes", "3", "there are: adam_b2, attention, batch_size, "),
    ("grpo.group", "8", "there are: abstain, accuracy, "),
    (f"{SOURCE}.foldr", "x", "there are: boxes, folder, kind, part, prepared, split, weight"),
    ("batch-size", "3", "Did you mean batch_size?"),
    ("steps.x", "3", "there is no setting steps.x; there are: none"),
]


def check(code: int, said: str, *parts: str) -> None:
    """One line from the command, which has the parts, and a non-zero exit code."""
    assert code in (1, 2), said
    (line,) = said.splitlines()
    assert line.startswith("cropvlm train: ")
    for part in parts:
        assert part in line


def test_a_wrong_setting_is_refused_in_one_line_before_anything_is_made(tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    results = train([[CONFIG, workdir, f"--config.{name}={value}"] for name, value, _ in WRONG])
    for (name, value, takes), (code, said) in zip(WRONG, results, strict=True):
        shown = value.strip("()").split(",")[0]
        also = () if re.search("there |mean|section", takes) else (name, shown)
        check(code, said, takes, *also)
    assert not list(tmp_path.iterdir())


# Flags below --config.data, and the end of what they lead to.
MINE = [
    (["sources.mine.foldr=x"], "there is no setting data.sources.mine.foldr; there are: boxes, f"),
    (["sources.mine.folder=x"], "data.sources.mine.kind='': 'mine' is no data set; there are: te"),
    (["sources.textvqa.weight=1"], "data.sources.textvqa.folder='': say where the data set is"),
    (["sources.zoom_digit.split=test"], "zoom_digits_deep. Did you mean sources.zoom_digits?"),
    (["sources.my-data.kind=jsonl"], "a source cannot be named 'my-data'; letters, digits and _"),
    (["sources.items.kind=jsonl"], "a source cannot be named 'items'"),
    (["sources.mine=x"], "--config.data.sources.mine is a section; the settings in it are: boxes,"),
    (["sources=mine"], "--config.data.sources=mine is not a section of settings by name"),
    (["source.mine.kind=jsonl"], "Did you mean sources?"),
    (["sources.mine.kind=jsonl", "sources.mine.folder=none"], "there is no folder none"),
    (["sources={'mine': {'kind': 'jsonl', 'folder': 'none'}}"], "there is no folder none"),
]


def test_flags_make_a_source_that_the_file_does_not_have(tmp_path):
    head = [CONFIG, f"--workdir={tmp_path / 'run'}"]
    commands = [[*head, *(f"--config.data.{flag}" for flag in flags)] for flags, _ in MINE]
    for (_, message), (code, said) in zip(MINE, train(commands), strict=True):
        check(code, said.splitlines()[-1], message)


HEAD = "from cropvlm_jax.training.config import default_config, source\n\n\n"
BODY = "def get_config(variant='a'):\n    config = default_config()\n"


@pytest.fixture(scope="module")
def refusals(tmp_path_factory) -> dict[str, tuple[int, str]]:
    """Exit code and output by the content of the config file."""
    folder, texts = tmp_path_factory.mktemp("configs"), [text for text, _ in FILES]
    commands = []
    for number, text in enumerate(texts):
        file = folder / f"config{number}.py"
        file.write_text(text)
        commands.append([f"--config={file}", f"--workdir={folder / 'run'}"])
    found = dict(zip(texts, train(commands), strict=True))
    assert not (folder / "run").exists()
    return found


FILES = [
    (
        f"{HEAD}{BODY}    source('x', foldr=1)\n",
        ".py:6: there is no setting foldr; there are: ",
    ),
    (f"{HEAD}{BODY}    source('x', part=(1, 0))\n", ".py:6: part=(1, 0) holds nothing: the first"),
    (f"{HEAD}{BODY}    config.stpes = 3\n", ".py:6: there is no setting stpes; there are: adam_b2"),
    (f"{HEAD}{BODY}    config.grpo.group\n", ".py:6: there is no setting group; there are: abst"),
    (f"{HEAD}{BODY}    config['stpes'] = 3\n", "Did you mean steps?"),
    (f"{HEAD}{BODY}    config.grpo.update(bta=1)\n", ".py:6: there is no setting bta; there are: "),
    (f"{HEAD}{BODY}    config.steps = 1.5\n", ".py:6: TypeError: Could not override field 'steps'"),
    (
        f"{HEAD}{BODY}    config.data.sources.a.b = 1\n",
        ".py:6: there is no setting a; there ",
    ),
    (
        f"{HEAD}{BODY}    config.data.sources.jsonl = source('x')\n"
        "    config.data.sources.jsonl.foldr = 'x'\n    return config\n",
        "there is no setting data.sources.jsonl.foldr; there are: boxes, folder",
    ),
    (
        f"{HEAD}{BODY}    config.grpo.beta = float('nan')\n    return config\n",
        "grpo.beta=nan is",
    ),
    (f"{HEAD}{BODY}    return 3\n", "get_config() returns 3, not what default_config() makes"),
    (f"{HEAD}{BODY}    return config\n", "data.sources is empty: say what data to train on"),
    (f"{HEAD}{BODY}    return [config\n", ".py:6: SyntaxError: '[' was never closed"),
    (f"{HEAD}{BODY}    return confg\n", ".py:6: NameError: name 'confg' is not defined"),
    (f"{HEAD}{BODY}    open('no/such/file')\n", ".py:6: FileNotFoundError: "),
    (f"{HEAD}import nonsense_of_mine\n", ".py:4: ModuleNotFoundError: No module named 'nonsense"),
    (HEAD, "there is no function get_config() in it"),
    (f"{HEAD}{BODY}    raise ValueError('choose\\na variant')\n", ".py:6: choose a variant"),
]


@pytest.mark.parametrize(("text", "message"), FILES)
def test_a_mistake_in_a_config_file_is_one_line(refusals, text, message):
    check(*refusals[text], message)


PROCESSES = [
    (["--coordinator_address=here"], "--coordinator_address=here is not host:port"),
    (["--coordinator_address=here:8482"], "needs --num_processes and --process_id"),
    (["--process_id=1"], "--num_processes and --process_id need --coordinator_address"),
    (["--num_processes=0"], "--num_processes=0"),
    (["--process_id=-1"], "--process_id=-1"),
    (
        ["--coordinator_address=here:1", "--num_processes=2", "--process_id=2"],
        "--process_id=2 is not below --num_processes=2",
    ),
    (["--heartbeat_timeout_seconds=0"], "--heartbeat_timeout_seconds=0"),
    (["--initialization_timeout_seconds=a"], "--initialization_timeout_seconds=a"),
    (["--distributed"], "nothing here says which processes there are"),
    # The settings are looked at before other processes are waited for.
    (
        ["--coordinator_address=127.0.0.1:1", "--num_processes=2", "--process_id=1"]
        + ["--config.grpo.beta=-1"],
        "grpo.beta=-1.0 is not a number between 0 and 1000",
    ),
]


def test_wrong_flags_of_several_processes_are_one_line(tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    results = train([[CONFIG, workdir, *arguments] for arguments, _ in PROCESSES])
    for (_, message), (code, said) in zip(PROCESSES, results, strict=True):
        lines = [line for line in said.splitlines() if "] joining the other" not in line]
        check(code, "\n".join(lines), message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [{}, {"initialization_timeout_seconds": 7}])
def test_the_time_outs_are_those_of_jax(given, monkeypatch):
    asked, initialize = {}, jax.distributed.initialize
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **options: asked.update(options))
    with parallel.joined("host:8482", 2, 1, heartbeat_timeout_seconds=60, **given):
        pass
    assert asked["heartbeat_timeout_seconds"] == 60
    assert asked["initialization_timeout"] == given.get("initialization_timeout_seconds", 900)
    assert asked.keys() <= inspect.signature(initialize).parameters.keys()
