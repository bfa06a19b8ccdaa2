"""Specs, tars, pickles, captions and names are what others wrote: nothing of them runs, escapes, or shows a secret."""

from __future__ import annotations

import html
import json
import stat
import urllib.parse
from pathlib import Path

import runs

SECRETS = {
    "MY_KEY": "Zq8-plain-endpoint-key",
    "ODD": "pa\"ss'w\\ö<rd>&7/%x",
    "HOOK": "https://127.0.0.1:9/T0000/B0000/zXcVbNmAsDfG",
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED0000000QQ",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYPLANTED",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzPLANTED//////////",
    "HF_TOKEN": "hf_plantedplantedplanted",
}  # the AWS keys and the last one stand in no spec
PASSWORD = "hunter2planted"  # of an address, which no variable has


def forms(value: str) -> set[str]:
    """How a value stands in text, JSON, addresses and pages."""
    return {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], html.escape(value),
            urllib.parse.quote(value), urllib.parse.quote(value, safe=""), repr(value)[1:-1]}  # fmt: skip


def found(text: str) -> list[str]:
    """Names of the planted secrets that stand in it."""
    planted = SECRETS | {"password": PASSWORD}
    return [name for name, value in planted.items() if any(form in text for form in forms(value))]


def test_no_secret_stands_in_a_run_folder_or_in_what_the_commands_say(tmp_path: Path) -> None:
    stages = {"leak": {"kind": "stages:Leak", "resources": {"cpus": 1}, "variables": list(SECRETS)}}
    names = ["MY_KEY", "ODD", "HOOK"]
    file = runs.spec(tmp_path, {"a.txt": "a", "fail.txt": "b", "unknown.txt": "c"}, stages, secrets=names,
                     notify={"webhook": "HOOK"})  # fmt: skip
    env = runs.environment(**SECRETS, ADDRESS=f"https://someone:{PASSWORD}@example.org/a")
    made = runs.hpc("run", file, env=env, code=None)
    assert "leak" in made.stdout and made.returncode == 1
    [run] = (tmp_path / "runs").iterdir()
    said = {"run": made.stdout + made.stderr}
    for place, words in (("with the secrets", env), ("without", runs.environment())):
        for command in (["status", run.name], ["logs", run.name], ["logs", run.name, "--failed", "--lines", "500"],
                        ["report", run.name], ["report", "--since", "1d"], ["report", run.name, "--json"],
                        ["status", run.name, "--json"], ["logs", run.name, "--json"], ["top", "--json"],
                        ["exporter", "--textfile", "metrics.prom"], ["dashboard", "--export", f"page {place}"],
                        ["retry", run.name], ["check", file], ["plan", file]):  # fmt: skip
            done = runs.hpc(*command, cwd=tmp_path, env=words, code=None)
            assert "Traceback" not in done.stderr, done.stderr
            said[f"{place}: {' '.join(map(str, command))}"] = done.stdout + done.stderr
            if "--json" in command:
                assert json.loads(done.stdout)
    where = {name: leaked for name, text in said.items() if (leaked := found(text))}
    files = [path for path in tmp_path.rglob("*") if path.is_file() and "in" not in path.parts]
    where |= {str(path): leaked for path in files if (leaked := found(path.read_bytes().decode(errors="replace")))}
    assert not where
    log = max((path.read_text() for path in (run / "logs" / "leak").iterdir()), key=len)
    assert "MY_KEY=***" in log and "someone:***@example.org" in log and "it is ***" in log  # the stage did say it
    records = "".join(path.read_text() for path in (run / "records" / "leak").iterdir())
    assert "refused by the server" in records and "answered to" in records
    assert "refused by the server" in said[f"with the secrets: report {run.name}"]
    for folder in (run, *run.glob("attempt-*")):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o750


def test_an_address_with_a_password_is_refused_without_saying_it(tmp_path: Path) -> None:
    for uri in (f"https://someone:{PASSWORD}@example.org/in", f"s3://someone:{PASSWORD}@bucket/in", "file:///etc"):
        file = runs.spec(tmp_path, {"a.txt": "a"})
        for command in ("check", "plan", "run"):
            done = runs.hpc(command, file, f"inputs={uri}", code=2)
            assert "only paths and s3://bucket/prefix are understood" in done.stderr
            assert PASSWORD not in done.stdout + done.stderr
