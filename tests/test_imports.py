"""Who may import whom, read from the source; and what importing the login node's side loads, by doing it.

cli -> batch -> stages -> models, data -> kernels: arrows never run back up. Everything in batch but the worker and the
process that it runs a stage in, and cli, import the standard library, yaml and msgspec only: `hpc` starts in a blink on
a login node that has nothing else. Each outside thing has one door.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

STAGES = {"curate", "prepare", "train", "generate", "evaluate"}
MAY_IMPORT = {
    "cli": {"cli", "batch", *STAGES, "data", "models", "kernels", "dashboards", "validate"},
    "batch": {"batch", *STAGES, "data", "models", "kernels", "dashboards"},
    **{stage: {stage, "data", "models", "kernels"} for stage in STAGES},
    "validate": {"validate", "curate", "prepare", "data"},
    "data": {"data", "kernels"},
    "models": {"models", "kernels"},
    "kernels": {"kernels"},
}
DOORS = {"av": "hpc.data.video", "boto3": "hpc.data.s3", "botocore": "hpc.data.s3"}
COMPUTE_NODE = {"hpc.batch.worker", "hpc.batch.runner"}  # of hpc.batch: may load what a stage needs
LOGIN_NODE_PACKAGES = {"hpc", "yaml", "msgspec"}
HEAVY = ("torch", "av", "numpy", "boto3", "botocore", "pyarrow", "rich", "submitit", "PIL", "webdataset")
SLURM_COMMANDS = {"sbatch", "squeue", "sacct", "scancel", "scontrol", "sinfo"}
READS_SLURM_VARIABLES = {"hpc.batch.launch", "hpc.batch.rank", "hpc.batch.worker"}  # the programs that jobs run
READS_SLURM_VARIABLES |= {"hpc.batch.doctor", "hpc.batch.health"}  # in an allocation? on which node?


def modules() -> dict[str, Path]:
    """{"hpc.batch.plan": path, ...}; kernels/ is hpc.kernels."""
    found = {}
    for folder, package in ((ROOT / "hpc", "hpc"), (ROOT / "kernels", "hpc.kernels")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(p for p in parts if p != "__init__")))] = path
    return found


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of every import: `from hpc.batch import plan` is hpc.batch.plan, `from . import x` is ..x."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def run_at_import(tree: ast.Module) -> ast.Module:
    """The module without what is inside functions or `if TYPE_CHECKING`."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    Strip().visit(tree)
    return tree


def commands(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Literals where the name of a command stands: first in a list, or in what a function that runs it is given."""
    runs = ("run", "Popen", "call", "check_call", "check_output", "system", "execv", "execvp", "spawnvp")
    for node in ast.walk(tree):
        first: list[ast.expr] = []
        if isinstance(node, ast.List):
            first = node.elts[:1]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in runs:
            first = node.args[:1]
            if first and isinstance(first[0], ast.Tuple):
                first = first[0].elts[:1]
        for word in first:
            if isinstance(word, ast.Constant) and isinstance(word.value, str):
                yield word.value.split(" ")[0], word.lineno


def environment_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names of environment variables that are used: os.environ["X"], environ.get("X"), getenv("X"), "X" in environ."""
    for node in ast.walk(tree):
        names: list[ast.expr] = []
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("environ"):
            names = [node.slice]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-2:][0] in ("environ", "getenv"):
            names = node.args[:1]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("getenv"):
            names = node.args[:1]
        elif isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]).endswith("environ"):
            names = [node.left]
        for name in names:
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield name.value, name.lineno


def problems(module: str, source: str) -> list[str]:
    """What in this module breaks a rule, as "line N: ..."."""
    tree = ast.parse(source)
    found = []
    layer = module.removeprefix("hpc.").split(".")[0]
    allowed = MAY_IMPORT.get(layer, set())
    for name, line in imports(tree):
        top = name.split(".")[0]
        if top == "":
            found.append(f"line {line}: relative import: write it in full, from hpc.")
        elif top == "hpc" and name != "hpc":
            if name.split(".")[1] not in {*allowed, "__version__"}:
                found.append(f"line {line}: {layer} imports {name}; it may import {', '.join(sorted(allowed))}")
        elif not f"{module}.".startswith(f"{DOORS.get(top, module)}."):
            found.append(f"line {line}: imports {top}, which {DOORS[top]} alone may")
        elif layer == "kernels" and top not in sys.stdlib_module_names | {"torch", "triton"}:
            found.append(f"line {line}: kernels imports {top}; it may import torch and triton")
    if layer in ("cli", "batch") and module not in COMPUTE_NODE:
        for name, line in imports(run_at_import(ast.parse(source))):
            top = name.split(".")[0]
            if top and top not in sys.stdlib_module_names | LOGIN_NODE_PACKAGES:
                found.append(f"line {line}: imports {top} when it is imported: do it in the function that needs it")
    if module != "hpc.batch.slurm":
        for word, line in commands(tree):
            if word in SLURM_COMMANDS:
                found.append(f"line {line}: runs {word}, which hpc.batch.slurm alone may")
    if module not in READS_SLURM_VARIABLES:
        for name, line in environment_names(tree):
            if name.startswith("SLURM"):
                found.append(
                    f"line {line}: reads {name}, which {' and '.join(sorted(READS_SLURM_VARIABLES))} alone may"
                )
    return found


@pytest.mark.parametrize("module", modules())
def test_rules(module: str) -> None:
    path = modules()[module]
    found = problems(module, path.read_text())
    assert not found, "\n".join(f"{path.relative_to(ROOT)} {problem}" for problem in found)


@pytest.mark.parametrize(
    ("module", "source", "words"),
    [
        ("hpc.data.work", "from hpc.batch import plan", "data imports hpc.batch.plan"),
        ("hpc.curate.clips", "def f():\n import hpc.cli", "line 2: curate imports hpc.cli"),
        ("hpc.train.ar", "from hpc.curate.settings import Clips", "train imports hpc.curate"),
        ("hpc.models.shots", "import hpc.data.layers", "models imports hpc.data"),
        ("hpc.kernels.rope", "import numpy", "kernels imports numpy"),
        ("hpc.batch.plan", "from . import run", "write it in full"),
        ("hpc.batch.plan", "import numpy as np", "imports numpy when"),
        ("hpc.cli", "try:\n import rich.table\nexcept ImportError: pass", "imports rich when"),
        ("hpc.batch.runner", "import boto3", "hpc.data.s3 alone"),
        ("hpc.curate.clips", "def f():\n import av.filter", "hpc.data.video alone"),
        ("hpc.batch.report", "import subprocess\nsubprocess.run(['sacct', '-X'])", "runs sacct"),
        ("hpc.cli", "command = ['scancel', '7']", "runs scancel"),
        ("hpc.cli", "import os\nos.system('scontrol requeue 7')", "runs scontrol"),
        ("hpc.cli", "from subprocess import run\nrun(('sbatch', 'x'))", "runs sbatch"),
        ("hpc.batch.run", "import os\nos.environ['SLURM_JOB_ID']", "reads SLURM_JOB_ID"),
        ("hpc.train.ar", "import os\nos.environ.get('SLURM_PROCID', 0)", "reads SLURM_PROCID"),
        ("hpc.train.ar", "import os\nos.getenv('SLURM_PROCID')", "reads SLURM_PROCID"),
        ("hpc.data.work", "import os\n'SLURMD_NODENAME' in os.environ", "reads SLURMD_NODENAME"),
    ],
)
def test_a_broken_rule_is_found(module: str, source: str, words: str) -> None:
    found = problems(module, source)
    assert len(found) == 1 and words in found[0]


def test_what_is_allowed() -> None:
    source = """
from typing import TYPE_CHECKING
import msgspec, yaml
from hpc.curate import settings
if TYPE_CHECKING:
    import torch
def table():
    import rich
    return which("sbatch"), Path("sbatch") / "array.sbatch", settings.get("sbatch"), ("sbatch", "x"), environ["HOME"]
"""
    assert problems("hpc.batch.plan", source) == []


def test_the_login_nodes_side_loads_nothing_heavy() -> None:
    """One fresh Python imports it all; the static rules cannot see what a light module's own imports pull in."""
    light = [m for m in modules() if m.split(".")[1:2] in (["batch"], ["cli"]) and m not in COMPUTE_NODE]
    code = f"import sys, {', '.join(light)}\nprint(*sorted(set({HEAVY}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_a_checkout_that_is_the_current_folder_has_its_kernels() -> None:
    """Without what an editable installation adds: `pip install .` and a command in the checkout import its hpc/."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from importlib.util import find_spec as f"
    code += "; print(f('hpc.kernels').origin)"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=180)
    assert done.stdout.strip() == str(ROOT / "kernels/__init__.py"), done.stderr
