"""The flags of `vllm serve`, and what it reads of --media-io-kwargs for frames, from vLLM's own source. By hand:

    pip download vllm==0.33.0 --no-deps --only-binary :all: --dest FOLDER     # a zip; nothing is installed
    python tests/golden/make_vllm.py FOLDER/vllm-0.33.0-*.whl                 # writes tests/golden/vllm.json

Flags of the engine are arguments of `add_argument`, those of the server are fields of FrontendArgs.
"""

from __future__ import annotations

import ast
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path


def flags(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            for word in node.args:
                if isinstance(word, ast.Constant) and str(word.value).startswith("-"):
                    yield word.value
        elif isinstance(node, ast.ClassDef) and node.name.endswith("FrontendArgs"):
            fields = (one.target for one in node.body if isinstance(one, ast.AnnAssign))
            yield from (f"--{field.id.replace('_', '-')}" for field in fields if isinstance(field, ast.Name))


def frame_keys(tree: ast.Module) -> Iterator[str]:
    """Of VideoMediaIO: its parameters, and what it takes from the others by name."""
    [video] = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == "VideoMediaIO")
    for node in ast.walk(video):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            yield from (one.arg for one in node.args.args[2:])  # after self and image_io
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "self.kwargs.get":
            yield ast.literal_eval(node.args[0])


def main(wheel: str) -> None:
    with zipfile.ZipFile(wheel) as package:

        def parsed(name: str) -> ast.Module:
            return ast.parse(package.read(f"vllm/{name}"))

        found = [*flags(parsed("engine/arg_utils.py")), *flags(parsed("entrypoints/common/cli_args.py"))]
        health = "@router.get('/health'" in ast.unparse(parsed("entrypoints/serve/instrumentator/health.py"))
        told = {
            "version": Path(wheel).name.split("-")[1],
            "health": health,
            "frames": sorted(set(frame_keys(parsed("multimodal/media/video.py")))),
            "flags": sorted(set(found)),
        }
    Path(__file__).with_name("vllm.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
