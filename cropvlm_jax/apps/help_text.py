# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What `cropvlm COMMAND --help` prints: our own words and flags, not those of other packages."""

import os
import sys
import textwrap
from types import ModuleType

from absl import flags

REQUESTS = ("--help", "-help", "-h", "-?", "--helpshort")
WIDTH = 96
SETTINGS = """Settings of the run:
  --config=FILE is a Python file that returns all settings; experiments/ holds ours. Some take a
  variant after a colon, such as --config=experiments/receipts.py:sft. --config.NAME=VALUE changes
  one setting, as often as you like, after --config:

      --config.learning_rate=1e-4 --config.grpo.num_generations=16

  A source of data may be new: it is made by the flags that describe it.

      --config.data.sources.mine.kind=jsonl --config.data.sources.mine.folder=data/mine

  docs/config.md lists every setting with its default and its meaning; a name that is not there is
  refused.
"""


def command_name(module: ModuleType) -> str:
    """What a user types to run a module of this room, such as "cropvlm train", or a script."""
    if module.__name__ == "__main__" and not module.__spec__:
        return f"python {os.path.relpath(sys.argv[0])}"
    name = module.__spec__.name if module.__spec__ else module.__name__
    return f"cropvlm {name.rpartition('.')[2]}"


def command_help(module: ModuleType) -> str:
    """The help of a command: its module's docstring, then its flags, those that it needs first."""
    name = command_name(module)
    defined = flags.FLAGS.get_flags_for_module(module)
    required = [flag for flag in defined if is_required(flag)]
    optional = [flag for flag in defined if not is_required(flag)]
    usage = " ".join([name, *(f"--{flag.name}=..." for flag in required), "[flags]"])
    parts = [f"usage: {usage}\n", f"{(module.__doc__ or '').strip()}\n"]
    if required:
        parts += ["Required flags:", *(flag_help(flag) for flag in required), ""]
    if optional:
        parts += ["Flags:", *(flag_help(flag) for flag in optional), ""]
    if any(flag.name == "config" for flag in defined):
        parts.append(SETTINGS)
    parts.append(
        "--verbosity=1 logs more and shows tracebacks. "
        f"{name} --helpfull lists the flags of all libraries too."
    )
    return "\n".join(parts)


def is_required(flag: flags.Flag) -> bool:
    """Whether a command does not run without this flag."""
    return any("must have a value" in validator.message for validator in flag.validators)


def flag_help(flag: flags.Flag) -> str:
    """A flag with its values, meaning and default."""
    if flag.boolean:
        head = f"  --[no]{flag.name}"
    elif isinstance(flag, flags.EnumFlag):
        head = f"  --{flag.name}={'|'.join(flag.parser.enum_values)}"
    else:
        head = f"  --{flag.name}=..."
    meaning = " ".join((flag.help or "").split())
    if isinstance(flag, flags.EnumFlag):  # absl's begins with the values
        meaning = meaning.removeprefix(f"<{'|'.join(flag.parser.enum_values)}>: ")
    if flag.default not in (None, [], ""):
        default = (flag.default_as_str or "").strip("'")
        meaning += f" Default: {default}."
    return "\n".join(
        textwrap.wrap(head, WIDTH, subsequent_indent="      ", break_on_hyphens=False)
        + textwrap.wrap(meaning, WIDTH, initial_indent="      ", subsequent_indent="      ")
    )
