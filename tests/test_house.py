# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The rules that keep the package readable, checked on its source.

Everything here reads `cropvlm_jax/` by its syntax trees, but for the import contract, which
import-linter checks as pyproject.toml states it, and for the modules that must not load jax, which
are imported in a process of their own.
"""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cropvlm_jax"
TREES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)

MOST_LINES_OF_A_FUNCTION = 80  # from `def` to the last line, decorators aside
MOST_NESTED_FUNCTIONS = 3  # at any depth; lambdas are not counted
MOST_LINES_OF_A_MODULE = 450
MOST_STARRED_ARGUMENTS = 44  # `f(*values)` in the whole package; lower it, never raise it

ARCHITECTURE = re.compile("smolvlm|llava|qwen", re.IGNORECASE)
MODELS = re.compile("models/")
NAMES_ARCHITECTURES = re.compile(r"models/(\w+/|registry\.py)")  # their folders, and the list
APPS = re.compile("apps/")  # where flags are defined and results are printed


def assert_none(violations: Iterator[tuple[str, str]]) -> None:
    """Fails on what breaks a rule, given as path and complaint."""
    found = [f"{path}: {complaint}" for path, complaint in violations]
    assert not found, "\n".join(["", *found])


def outside(folder: re.Pattern) -> dict[str, ast.Module]:
    """The modules whose paths do not begin as the pattern says."""
    return {path: tree for path, tree in TREES.items() if not folder.match(path)}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions of a tree, methods and nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, FUNCTION))


def test_functions_are_short():
    def long() -> Iterator[tuple[str, str]]:
        for path, tree in TREES.items():
            for function in functions(tree):
                lines = function.end_lineno - function.lineno + 1
                if lines > MOST_LINES_OF_A_FUNCTION:
                    yield path, f"{function.name} has {lines} lines"

    assert_none(long())


def test_functions_do_not_nest_deeply():
    def deep() -> Iterator[tuple[str, str]]:
        for path, tree in TREES.items():
            for function in functions(tree):
                nested = len(list(functions(function))) - 1
                if nested > MOST_NESTED_FUNCTIONS:
                    yield path, f"{function.name} has {nested} nested functions"

    assert_none(deep())


def test_modules_are_short():
    def long() -> Iterator[tuple[str, str]]:
        for path in TREES:
            lines = len((PACKAGE / path).read_text().splitlines())
            if lines > MOST_LINES_OF_A_MODULE:
                yield path, f"{lines} lines"

    assert_none(long())


def test_no_room_but_models_asks_for_a_config_s_class():
    def asked() -> Iterator[tuple[str, str]]:
        for path, tree in outside(MODELS).items():
            for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
                if isinstance(call.func, ast.Name) and call.func.id == "isinstance":
                    if re.search(r"Config\b", ast.unparse(call.args[1])):
                        yield path, f"line {call.lineno}: {ast.unparse(call)}"

    assert_none(asked())


def identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The names in a module, with their lines: of variables, attributes, functions, imports."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield node.lineno, name
            case ast.keyword(arg=str(name)):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.ImportFrom(module=str(module), names=names):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)


def test_no_shared_module_names_an_architecture():
    def named() -> Iterator[tuple[str, str]]:
        for path, tree in outside(NAMES_ARCHITECTURES).items():
            for line, name in identifiers(tree):
                if ARCHITECTURE.search(name):
                    yield path, f"line {line}: {name}"

    assert_none(named())


def test_nothing_but_apps_prints_or_reads_flags():
    def doors() -> Iterator[tuple[str, str]]:
        for path, tree in outside(APPS).items():
            for line, name in identifiers(tree):
                if name in ("print", "absl.flags", "absl.app"):
                    yield path, f"line {line}: {name}"

    assert_none(doors())


def undocumented(tree: ast.Module | ast.ClassDef, owner: str = "") -> Iterator[str]:
    """Public functions and classes without a docstring; special methods need none."""
    for node in tree.body:
        if isinstance(node, (*FUNCTION, ast.ClassDef)) and not node.name.startswith("_"):
            overload = any("overload" in ast.unparse(d) for d in node.decorator_list)
            if not ast.get_docstring(node) and not overload:
                yield f"{owner}{node.name} (line {node.lineno})"
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from undocumented(node, f"{node.name}.")


def test_everything_public_is_documented():
    def missing() -> Iterator[tuple[str, str]]:
        for path, tree in TREES.items():
            if not ast.get_docstring(tree):
                yield path, "the module has no docstring"
            for name in undocumented(tree):
                yield path, f"{name} has no docstring"

    assert_none(missing())


def test_docstrings_say_the_thing_itself():
    def riddles() -> Iterator[tuple[str, str]]:
        for path, tree in TREES.items():
            for node in ast.walk(tree):
                if isinstance(node, (*FUNCTION, ast.ClassDef, ast.Module)):
                    if "likewise" in (ast.get_docstring(node) or "").lower():
                        yield path, f"{getattr(node, 'name', 'the module')} says 'likewise'"

    assert_none(riddles())


def test_starred_arguments_do_not_grow():
    starred = {
        path: sum(
            isinstance(argument, ast.Starred)
            for call in ast.walk(tree)
            if isinstance(call, ast.Call)
            for argument in call.args
        )
        for path, tree in TREES.items()
    }
    table = ", ".join(f"{path} {count}" for path, count in starred.items() if count)
    assert sum(starred.values()) <= MOST_STARRED_ARGUMENTS, f"name the arguments: {table}"


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a Python of its own, in the repository's folder."""
    paths = os.pathsep.join([str(ROOT), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
        text=True,
    )


def test_rooms_import_one_way():
    linter = run("import importlinter.cli as c, sys; sys.exit(c.lint_imports(no_cache=True))")
    assert linter.returncode == 0, linter.stdout + linter.stderr


def test_nothing_writes_what_is_no_json():
    def lenient() -> Iterator[tuple[str, str]]:
        scripts = sorted((ROOT / "experiments").rglob("*.py"))
        trees = TREES | {f"../experiments/{p.name}": ast.parse(p.read_text()) for p in scripts}
        for path, tree in trees.items():
            for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
                if ast.unparse(call.func) in ("json.dump", "json.dumps"):
                    strict = any(
                        keyword.arg == "allow_nan" and ast.unparse(keyword.value) == "False"
                        for keyword in call.keywords
                    )
                    if not strict:
                        yield path, f"line {call.lineno} lets NaN through: pass allow_nan=False"

    assert_none(lenient())


def test_advice_names_packages_that_there_are():
    """What an error says to install is a dependency, under its own name: ours is on no index."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    needed = [*project["dependencies"], *(name for extra in extras for name in extra)]
    known = {re.split(r"[\[<>=]", name)[0] for name in needed} - {project["name"]}
    known |= {"libtpu", "xprof"}

    def unknown() -> Iterator[tuple[str, str]]:
        for path, tree in TREES.items():
            texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
            for text in (text for text in texts if isinstance(text, str)):
                for advice in re.findall(r"pip install ([^-`,;\n(][^`,;\n(]*)", text):
                    if not known.issuperset(name.split("==")[0] for name in advice.split()):
                        yield path, f"pip install {advice}"

    assert_none(unknown())


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (test_functions_are_short, "def long():\n" + "    x = 1\n" * MOST_LINES_OF_A_FUNCTION),
        (
            test_functions_do_not_nest_deeply,
            "def deep():\n" + "    def inner(): ...\n" * (MOST_NESTED_FUNCTIONS + 1),
        ),
        (test_no_room_but_models_asks_for_a_config_s_class, "isinstance(x, LlamaConfig)"),
        (test_no_shared_module_names_an_architecture, "x.is_llava"),
        (test_nothing_but_apps_prints_or_reads_flags, "print(1)"),
        (test_everything_public_is_documented, "def silent(): ..."),
        (test_docstrings_say_the_thing_itself, '"""Target: likewise."""'),
        (test_nothing_writes_what_is_no_json, "json.dumps(x)"),
        (test_advice_names_packages_that_there_are, "x = 'pip install cropvlm-jax'"),
    ],
)
def test_a_rule_sees_what_breaks_it(rule, code, monkeypatch):
    rule()
    monkeypatch.setitem(TREES, "grpo/planted.py", ast.parse(code))
    with pytest.raises(AssertionError, match=re.escape("grpo/planted.py: ")):
        rule()


def test_the_length_of_a_module_is_seen(monkeypatch):
    monkeypatch.setitem(globals(), "MOST_LINES_OF_A_MODULE", 400)
    with pytest.raises(AssertionError, match=re.escape("grpo/step.py: ")):
        test_modules_are_short()


WITHOUT_JAX = [
    f"cropvlm_jax.{path.removesuffix('.py').replace('/', '.')}"
    for path in TREES
    if path.startswith(("geometry/", "data/"))
    or path.endswith(("/conversations.py", "/image_processing.py"))
]
# Grain imports jax where it is installed, and builders.py takes TensorFlow Datasets, which do not.
STUBBED = """
import importlib, sys
sys.modules["jax"] = sys.modules["flax"] = None
sys.modules["grain"] = type(sys)("grain")
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_data_workers_never_import_jax():
    names = [
        name.removesuffix(".__init__")
        for name in (*WITHOUT_JAX, "cropvlm_jax.pixels.host", "cropvlm_jax.scoring")
        if name != "cropvlm_jax.data.builders"
    ]
    imported = run(STUBBED, *names)
    assert imported.returncode == 0, imported.stderr
