# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""launch/colab.ipynb runs from top to bottom."""

import json
import pathlib

import nbclient
import nbformat
import numpy as np

from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.training.config import default_config

ROOT = pathlib.Path(__file__).parents[2]


def read():
    """The notebook and its cells by id."""
    notebook = nbformat.read(ROOT / "launch" / "colab.ipynb", as_version=4)
    nbformat.validate(notebook)
    return notebook, {cell.id: cell for cell in notebook.cells}


def test_it_is_committed_without_outputs_and_its_settings_are_known_ones():
    notebook, cells = read()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
    names: dict = {}
    exec(cells["settings"].source, names)
    for settings in (names["TINY"], names["SMOLVLM_256M"]):
        default_config().lock().update_from_flattened_dict(settings)  # raises where one is unknown
    assert names["SETTINGS"] is names["TINY"]


def test_it_runs_top_to_bottom(tmp_path):
    notebook, cells = read()
    fewer = f"STEPS, SCENES, WORKDIR = 2, 1, {str(tmp_path / 'run')!r}"
    cells["settings"].source += f"\n{fewer}"
    cells["config"].source += "\nconfig.batch_size, config.grpo.num_generations = 2, 2"
    resources = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()

    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2]
    exported = Pretrained.open(tmp_path / "run" / "export")
    assert json.loads((exported.folder / "config.json").read_text())["dtype"] == "bfloat16"
    trained = Pretrained.open(tmp_path / "run" / "cropper").load().text.head[...]
    np.testing.assert_allclose(exported.load().text.head[...], trained, rtol=2**-8)
    for name in ("zoom", "train", "compare", "panels"):
        shown = [output.get("data", {}) for output in cells[name].outputs]
        assert sum("image/png" in data for data in shown) == 1, name
