# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The flag --config: a Python file with the settings of a run, which further flags change.

`ml_collections` refuses flags for what the file does not have. Sources may be new all the same:
`--config.data.sources.mine.kind=jsonl` makes the source `mine`.
"""

import keyword
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

flags.disclaim_key_flags()  # --config belongs to the command that asks for it


def define_config() -> flags.FlagHolder:
    """Defines --config, which the command then needs."""
    holder = config_flags.DEFINE_config_file(
        "config", None, "Python file with the settings of the run; explained below."
    )
    flags.FLAGS["config"].parser = ConfigParser(files=flags.FLAGS["config"].parser)
    flags.mark_flag_as_required("config")
    return holder


class ConfigParser(flags.ArgumentParser):
    """Reads the file, and adds the sources that only the command line names."""

    def __init__(self, files: flags.ArgumentParser):
        """Makes a parser.

        Args:
            files: what reads the file.
        """
        self.files = files

    def parse(self, argument: str) -> Any:
        """The settings of a file, as `--config=FILE:VARIANT` names it."""
        config = self.files.parse(argument)
        add_sources(config, overrides(sys.argv))
        return config

    def flag_type(self) -> str:
        """What the flag takes, in words."""
        return self.files.flag_type()


def overrides(argv: list[str]) -> Iterator[str]:
    """The names of the settings that a command line changes."""
    for argument in argv:
        if match := re.match(r"--?(?:no)?config\.([^=]*)", argument):
            yield match[1]


def add_sources(config: Any, names: Iterable[str]) -> None:
    """Adds the sources that settings name and a config file does not have.

    Args:
        config: what `get_config()` of the file returned.
        names: of settings that the command line changes, such as "data.sources.mine.kind".

    Raises:
        ValueError: a source cannot have such a name.
    """
    from cropvlm_jax.training.config import source  # takes seconds: it imports jax

    for name in names:
        found = re.match(r"(data|eval)\.sources\.([^.]+)", name)
        section = config.get(found[1]) if found and isinstance(config, ConfigDict) else None
        if not found or not isinstance(section, ConfigDict) or "sources" not in section:
            continue  # no source, or no settings of a run, which is said elsewhere
        sources, new = section.sources, found[2]
        if not new.isidentifier() or keyword.iskeyword(new) or hasattr(ConfigDict, new):
            raise ValueError(
                f"--config.{name}: a source cannot be named {new!r}; letters, digits and _ make a "
                "name, such as mine"
            )
        if new not in sources:
            with sources.unlocked():
                sources[new] = source()
