"""Which files of a Hugging Face repository, or of a folder, are its video tokenizer. Imports nothing heavy, so that a
spec can be checked, and `hpc models pull` run, where there is no torch."""

from __future__ import annotations

import json
import re
from pathlib import Path

from hpc.models.hub import located

PUBLISHED = {
    r"nvidia/Cosmos-(Tokenize1|[\d.]+-Tokenizer)-DV8x16x16(-720p)?": ("encoder.jit", "decoder.jit"),
    r"nvidia/Cosmos-(Tokenize1|[\d.]+-Tokenizer)-CV8x8x8(-720p)?": ("encoder.jit", "decoder.jit", "mean_std.pt"),
    r"Wan-AI/Wan2\.1-[^/]*(?<!-Diffusers)": ("Wan2.1_VAE.pth",),
    r"nvidia/Cosmos-Predict2\.5-[^/]*": ("tokenizer.pth",),
    r"nvidia/Cosmos-Predict2-[^/]*": ("tokenizer/tokenizer.pth",),
    r".*-Diffusers|nvidia/Cosmos-1\.0-Diffusion-.*": ("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
}
"""{repository: files}."""
COMPRESSIONS = {r"DV8x16x16": (8, 16), r"CV8x8x8": (8, 8), r"Wan|Predict2": (4, 8)}
"""Words in the names of published tokenizers -> frames, and pixels along an edge, that a latent stands for."""
SAVED = (("encoder.jit", "decoder.jit"), ("autoencoder.jit",), ("Wan2.1_VAE.pth",), ("tokenizer.pth",))
"""What a folder may have in place of a config.json."""
IMPORT_PATH = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"
"""A tokenizer of one's own: package.module:make."""
PIECE = 2**24
"""Pixels, frames counted, that a continuous tokenizer encodes at once: 18 frames of 720 x 1280. With the 96 channels of
Wan's VAE 2^31 / 96 of them, 1.3 times as many, are more numbers than cuDNN has fast convolutions for: on one H200 a
whole clip of 93 x 720 x 1280 takes 93 GiB, and 1.65 times as long as in pieces of 16 frames, which take 21 GiB."""
STAGE = r"[a-z][a-z0-9_-]{0,31}"
"""A stage of the same spec, which trains it."""


def is_path(where: str) -> bool:
    return where.startswith(("/", "~", "."))


def is_stage(where: str | None) -> bool:
    return where is not None and bool(re.fullmatch(STAGE, where))


def compression(where: str) -> tuple[int, int] | None:
    """Frames, and pixels along an edge, that a latent stands for; None where only files can tell."""
    if is_path(where) or is_stage(where) or ":" in where:
        return None
    return next((found for word, found in COMPRESSIONS.items() if re.search(word, where)), None)


def piece(height: int, width: int, temporal: int) -> int:
    """Frames of a long video that are encoded at once: whole latent frames, one at the least."""
    return max(1, PIECE // (height * width) // temporal) * temporal


def files_of(where: str) -> tuple[str, ...]:
    """Of owner/name@revision, the files to fetch; () for a path, for package.module:make, and for a stage. Raises
    ValueError for a repository that is not known to have a tokenizer."""
    if is_path(where) or is_stage(where) or re.fullmatch(IMPORT_PATH, where):
        return ()
    for pattern, names in PUBLISHED.items():
        if re.fullmatch(pattern, where.partition("@")[0]):
            return names
    raise ValueError(
        f"{where}: no tokenizer is known by this name. Give the path of a file or a folder, package.module:make, a "
        "stage in `needs` that trains one, or a repository with one: nvidia/Cosmos-Tokenize1-DV8x16x16-720p, "
        "nvidia/Cosmos-Tokenize1-CV8x8x8-720p, "
        "Wan-AI/Wan2.1-T2V-1.3B, nvidia/Cosmos-Predict2.5-2B"
    )


def found(where: str) -> list[Path]:
    """The files of a tokenizer: config.json, of what a folder describes by one, or all that are published."""
    if not is_path(where):
        return located(where, *files_of(where))
    path = Path(where).expanduser().resolve()
    if (
        path.is_file()
        and path.name not in ("encoder.jit", "decoder.jit")
        and not describes(path.parent / "config.json")
    ):
        return [path, *statistics(path.parent)]
    folder = path.parent if path.is_file() else path
    for place in (folder, folder / "vae"):
        if describes(place / "config.json"):
            return [place / "config.json"]
    for names in SAVED:
        if all((folder / name).is_file() for name in names):
            return [*(folder / name for name in names), *statistics(folder)]
    wanted = ", or ".join(" and ".join(names) for names in (("config.json",), *SAVED))
    raise FileNotFoundError(f"{where}: there is no tokenizer on this machine: no folder with {wanted}")


def statistics(folder: Path) -> list[Path]:
    """The means and stds of a continuous Cosmos tokenizer's latents, if they are there."""
    return [path for path in [folder / "mean_std.pt"] if path.is_file()]


def describes(path: Path) -> bool:
    """Whether this config.json tells what tokenizer is beside it: published folders have one that does not."""
    return path.is_file() and not {"tokenizer", "_class_name"}.isdisjoint(json.loads(path.read_bytes()))
