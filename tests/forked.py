# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs Python programs as forks of one process that has imported jax and the package.

A process of its own needs three seconds to import them, and the commands are run a hundred times.
The fork has the arguments, environment, folder, input and end of a process of its own, and XLA
reads its flags there. What is about imports, or about several processes, needs a real one.
"""

import atexit
import functools
import gc
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
from typing import Any

TESTS = pathlib.Path(__file__).resolve().parent
TIMEOUT_S = 300
CACHE = "JAX_COMPILATION_CACHE_DIR"


def python(
    *arguments: str | os.PathLike[str],
    input: str = "",
    cwd: str | os.PathLike[str] = ".",
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """What `python ARGUMENTS` prints and how it ends.

    Args:
        arguments: `-m MODULE`, `-c CODE` or a file, and what the program gets.
        input: on its standard input.
        cwd: the folder that it runs in.
        env: its environment; None is that of this process.
    """
    kind, *rest = map(str, arguments)
    request = {
        "kind": kind,
        "arguments": rest,
        "input": input,
        "cwd": os.path.abspath(cwd),
        "env": dict(os.environ if env is None else env),
    }
    server = start()
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    code, out, err = json.loads(server.stdout.readline())
    return subprocess.CompletedProcess(arguments, code, out, err)


@functools.cache
def start() -> subprocess.Popen[str]:
    """The process that forks."""
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS), *filter(None, sys.path)])
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONPATH": paths}
    server = subprocess.Popen([sys.executable, __file__], env=environment, **pipes)

    def end() -> None:
        server.stdin.close()
        server.wait()

    atexit.register(end)
    return server


def import_all() -> None:
    """Imports what commands import; not the commands, whose flags have the same names."""
    import cropvlm_jax.api
    import cropvlm_jax.data.builders
    import cropvlm_jax.evals.report
    import cropvlm_jax.evals.study
    import cropvlm_jax.labelling.vlm
    import cropvlm_jax.serving.mcp_tool
    import cropvlm_jax.serving.service
    import cropvlm_jax.training.dry_run
    import cropvlm_jax.training.loop
    import cropvlm_jax.zooming.run  # noqa: F401


def serve() -> None:
    """Forks once a line of the standard input; a fork returns what it is asked to be."""
    import_all()
    gc.freeze()  # what was imported: forks then share its memory
    while line := sys.stdin.readline():
        request = json.loads(line)
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out:
            with tempfile.TemporaryFile() as err:
                given.write(request["input"].encode())
                given.seek(0)
                child = os.fork()
                if child == 0:
                    return become(request, [given.fileno(), out.fileno(), err.fileno()])
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                said = [file.seek(0) or file.read().decode() for file in (out, err)]
        print(json.dumps([code, *said]), flush=True)


def become(request: dict[str, Any], files: list[int]) -> None:
    """Runs a program in this process, which then ends as the program does."""
    signal.alarm(TIMEOUT_S)
    for descriptor, file in enumerate(files):
        os.dup2(file, descriptor)
    sys.stdin = open(0)
    os.chdir(request["cwd"])
    before = os.environ.get(CACHE)
    os.environ.clear()
    os.environ.update(request["env"])
    if os.environ.get(CACHE) != before:  # which jax has read
        import jax

        jax.config.update(CACHE.lower(), os.environ.get(CACHE))
    kind, arguments = request["kind"], request["arguments"]
    if kind == "-m":
        sys.argv = [*arguments]
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *arguments[1:]]
        exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [kind, *arguments]
        sys.path.insert(0, os.path.dirname(kind))
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    serve()
