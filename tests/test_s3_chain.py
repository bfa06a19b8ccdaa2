"""All of curation between two stores that speak S3, each with a profile of its own: every stage works there."""

from __future__ import annotations

import re
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
import runs
import s3
from test_text_embed import save as save_t5

from hpc.data import layers, storage
from hpc.train.samples import listed
from hpc.validate import validate

TRAILER = Path(__file__).parents[1] / "jobs/quickstart/trailer_bbb.mp4"
PROFILES = """\
[profile raw]
endpoint_url = {raw}
region = us-east-1
[profile made]
endpoint_url = {made}
region = us-east-1
"""
KEY = f"aws_access_key_id = {s3.KEY}\naws_secret_access_key = {s3.SECRET}\n"


def films(folder: Path) -> None:
    """20 s of the trailer, and the same once more, smaller and encoded anew."""
    folder.mkdir(parents=True)
    cut = ["ffmpeg", "-loglevel", "error", "-ss", "12", "-t", "20", "-i", str(TRAILER), "-an"]
    small = ["-vf", "scale=640:-2", "-c:v", "libx264", "-preset", "ultrafast"]
    subprocess.run([*cut, *small, str(folder / "a b+%20.mp4")], check=True)
    subprocess.run([*cut, *small, "-crf", "33", str(folder / "zz.mp4")], check=True)


def test_a_whole_curation_between_two_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """...though one in twenty requests to the store of the output fails, in one of five ways."""
    films(tmp_path / "store/bucket/raw")
    with s3.rclone(tmp_path / "store") as raw, s3.moto() as server, s3.faulty(server, seed=5, rate=0.05) as made:
        (tmp_path / ".aws").mkdir()
        (tmp_path / ".aws/config").write_text(PROFILES.format(raw=raw.endpoint, made=made.endpoint))
        (tmp_path / ".aws/credentials").write_text(f"[raw]\n{KEY}[made]\n{KEY}")
        t5 = save_t5(tmp_path / "t5")
        cheap = {"resources": {"cpus": 1}}
        stages: dict[str, Any] = {
            "clips": {"kind": "curate.clips", "split": {"detector": "stride", "stride": "5s"},
                      "encode": {"preset": "ultrafast", "short_side": 180}},
            "caption": {"kind": "curate.caption", "needs": "clips", "text": "a rabbit and a butterfly"},
            "words": {"kind": "curate.text_embed", "needs": "caption", "model": str(t5)},
            "embed": {"kind": "curate.embed", "needs": "clips", "model": "perceptual"},
            "dedup": {"kind": "curate.dedup", "needs": ["clips", "embed"], "eps": 0.03},
            "shard": {"kind": "curate.shard", "needs": ["clips", "caption", "words", "dedup"], "layout": "cosmos"},
        }  # fmt: skip
        spec = runs.spec(tmp_path, {}, {name: stage | cheap for name, stage in stages.items()},
                         inputs="s3://raw@bucket/raw", output="s3://made@bucket/processed/v0",
                         shards={"size": "1MiB"})  # fmt: skip
        env = runs.environment(HOME=str(tmp_path))
        runs.hpc("run", spec, env=env, timeout=300)
        assert "nothing to do" in runs.hpc("run", spec, env=env).stdout

        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, str(tmp_path / ".aws" / ("config" if "CONFIG" in name else "credentials")))
        out = "s3://made@bucket/processed/v0"
        rows, gone = rows_of(f"{out}/clips@v1"), rows_of(f"{out}/dedup@v1")
        assert [row["verdict"] for row in rows] == ["keep"] * 8
        videos = [f"s3://bucket/raw/{name}.mp4" for name in ("a b+%20", "zz")]
        spans = [f"{film}_{at}.0_{at + 5}.0" for film in videos for at in (0, 5, 10, 15)]
        assert sorted(row["uuid"] for row in rows) == sorted(str(uuid.uuid5(uuid.NAMESPACE_URL, one)) for one in spans)
        assert [row["verdict"] for row in gone] == ["duplicate"] * 4, "one of each pair"
        report = validate(f"{out}/shard@v1", "cosmos")
        assert not report.errors and report.entries == 4, report.problems
        assert storage.read(f"{out}/shard@v1/v0/wdinfo_list.csv").startswith(b"s3://bucket/processed/v0/shard@v1/v0/")
        samples = listed(f"{out}/shard@v1/v0").to_pylist()
        assert len(samples) == 4 and all(row["frames"] == 120 and row["embedding"]["size"] for row in samples)
        assert sum(made.faults.values()) > 5


def rows_of(folder: str) -> list[dict[str, Any]]:
    """Of the tables of a stage, one for each shard."""
    rows = []
    for entry in storage.listing(folder):
        if re.fullmatch(r"\d+\.parquet", entry.uri.removeprefix(f"{folder}/")):
            with storage.open(entry.uri) as file:
                rows += layers.read_table(file).to_pylist()
    return rows
