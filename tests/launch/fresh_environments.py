# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs the install cell of launch/colab.ipynb in a new environment with older packages, by pip.

    python tests/launch/fresh_environments.py --python=python3.13 --numpy=2.1.3

The environment has the JAX, Flax and NumPy of a Colab image; they are imported or not. Then the
cell runs three times, each time in a new kernel. It needs the network, minutes and a gigabyte, so
it is no part of the suite.
"""

import argparse
import json
import os
import pathlib
import subprocess
import tempfile

import nbclient
import nbformat

ROOT = pathlib.Path(__file__).parents[2]
IMAGE = ("jax==0.7.2", "flax==0.11.2", "absl-py==1.4.0", "ipykernel")
IMPORTS = "import numpy, scipy, jax, flax, absl.flags"


def make(folder: pathlib.Path, python: str, numpy: str) -> pathlib.Path:
    """An environment with the packages of an image, and a kernel of it; gives its Python."""
    subprocess.run([python, "-m", "venv", folder / "env"], check=True)
    own = folder / "env" / "bin" / "python"
    pip = [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *IMAGE, f"numpy=={numpy}"], check=True)
    spec = folder / "kernels" / "fresh" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [str(own), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "fresh", "language": "python"}))
    return own


def run(folder: pathlib.Path, *sources: str) -> str:
    """Runs cells in a new kernel; gives what they print, and whether the kernel died."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    where = {"metadata": {"path": str(ROOT / "launch")}}
    client = nbclient.NotebookClient(notebook, timeout=900, kernel_name="fresh", resources=where)
    try:
        client.execute()
        end = "the kernel lives"
    except nbclient.exceptions.DeadKernelError:
        end = "the kernel ended itself"
    printed = [output.get("text", "") for cell in notebook.cells for output in cell.outputs]
    return "".join([*printed, end])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", default="python3")
    parser.add_argument("--numpy", default="2.1.3")
    given = parser.parse_args()
    notebook = nbformat.read(ROOT / "launch" / "colab.ipynb", as_version=4)
    (cell,) = (cell.source for cell in notebook.cells if cell.get("id") == "install")
    os.environ.pop("PYTHONPATH", None)  # the kernel is to see what pip installs
    for imports in ("", IMPORTS):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            os.environ["JUPYTER_PATH"] = name
            own = make(folder, given.python, given.numpy)
            for time in (1, 2, 3):
                print(f"--- imported: {imports or 'nothing'}; run {time}")
                print(run(folder, *([imports] if time == 1 else []), cell))
            subprocess.run(
                [own, "-c", "import numpy; print('numpy', numpy.__version__)"], check=True
            )


if __name__ == "__main__":
    main()
