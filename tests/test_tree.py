"""The README's drawing of the repository is true: every file is in it, with a few words, and nothing else is.

The drawing is the fenced block of README.md that has a line starting with `hpc/`. One line for each file or folder:

    hpc/                  the Python package
      cli.py              the commands
      data/               how bytes come and go
        storage.py        files and objects behind one interface
    tests/
      data/               small inputs for the tests

A deeper indentation is "inside of"; folders end with a slash; two spaces or more stand before the words, which files
must have (several names with one space between them share their words). A folder of tests/ that has nothing drawn below
it stands for all that is in it. `__init__.py` and names that start with a dot need not be drawn.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP = {"README.md", "pyproject.toml", "hpc", "kernels", "jobs", "sbatch", "containers", "tests"}


def drawing(readme: str) -> str:
    blocks = [block.partition("\n")[2] for block in readme.split("\n```")[1::2]]
    found = [block for block in blocks if any(line.startswith("hpc/") for line in block.splitlines())]
    assert len(found) == 1, (
        f"README.md has {len(found)} fenced blocks with a line starting with hpc/; one is the drawing"
    )
    return found[0]


def parse(text: str) -> dict[str, str]:
    """{"hpc/data/storage.py": "files and objects...", "hpc/data/": ...}."""
    entries: dict[str, str] = {}
    above: list[tuple[int, str]] = []  # (indentation, folder) of the folders that the line may be in
    for line in text.splitlines():
        if not line.strip():
            continue
        indentation = len(line) - len(line.lstrip())
        names, _, words = line.strip().partition("  ")
        while above and above[-1][0] >= indentation:
            above.pop()
        folder = above[-1][1] if above else ""
        assert indentation == 0 or folder, f"README.md's drawing: indented, but not below a folder: {line!r}"
        for name in names.split(" "):
            assert folder + name not in entries, f"README.md's drawing has {folder + name} twice"
            entries[folder + name] = words.strip()
        if names.endswith("/"):
            above.append((indentation, folder + names))
    return entries


def differences(entries: dict[str, str], files: set[str]) -> list[str]:
    """Between the drawing and the files of the repository, as sentences."""
    folders = {f"{parent}/" for file in files for parent in Path(file).parents if str(parent) != "."}
    whole = {e for e in entries if e.startswith("tests/") and e.endswith("/") and e != "tests/"}
    whole -= {e for e in whole if any(other.startswith(e) and other != e for other in entries)}
    found = [f"{e} is drawn, but not there" for e in entries if e not in files | folders]
    found += [f"{e} is drawn without words" for e, words in entries.items() if not words and not e.endswith("/")]
    for file in sorted(files):
        hidden = file.endswith("__init__.py") or any(part.startswith(".") for part in file.split("/"))
        if not hidden and file not in entries and not any(file.startswith(folder) for folder in whole):
            found.append(f"{file} is not drawn")
    return found


def tracked() -> set[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what belongs to the repository is unknown")
    command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "ls-files", "-z"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=180)
    return {name for name in done.stdout.split("\0") if name and (ROOT / name).exists()}


def test_the_readmes_drawing_is_true() -> None:
    found = differences(parse(drawing((ROOT / "README.md").read_text())), tracked())
    assert not found, "\n".join(found)


def test_the_top_level() -> None:
    assert {name.split("/")[0] for name in tracked() if not name.startswith(".")} == TOP


DRAWN = """
README.md   this
hpc/        the package
  cli.py    commands
  data/
    a.py b.py   bytes
tests/
  data/     inputs
  test_a.py   of a
"""
FILES = set("README.md hpc/__init__.py hpc/cli.py hpc/data/a.py hpc/data/b.py tests/data/x.bin tests/test_a.py".split())


def test_a_true_drawing() -> None:
    text = f"# hpc\n\n```sh\nls\n```\n\n```\n{DRAWN}```\n"
    assert differences(parse(drawing(text)), {*FILES, ".ci/run"}) == []


@pytest.mark.parametrize(
    ("drawn", "files", "words"),
    [
        (DRAWN, FILES | {"hpc/data/c.py"}, "hpc/data/c.py is not drawn"),
        (DRAWN, FILES | {"tests/test_b.py"}, "tests/test_b.py is not drawn"),
        (DRAWN, FILES - {"hpc/cli.py"}, "hpc/cli.py is drawn, but not there"),
        (DRAWN.replace("commands", ""), FILES, "hpc/cli.py is drawn without words"),
        (DRAWN.replace("    a.py b.py   bytes\n", ""), FILES, "hpc/data/a.py is not drawn"),
    ],
)
def test_a_false_drawing(drawn: str, files: set[str], words: str) -> None:
    assert words in differences(parse(drawn), files)
