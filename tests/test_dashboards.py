"""Grafana's dashboards and the alert rules: every query gives data in a real Prometheus that scrapes `hpc exporter`.

Grafana itself is in no registry of packages, so that importing is tested by its published models of a dashboard's JSON
(grafana-foundation-sdk, which Grafana Labs generates from its schemas): nothing may be lost on the way through them.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import figures
import pytest
import runs
import yaml

from hpc.batch.exporter import DASHBOARDS
from hpc.batch.metrics import ABOUT
from hpc.batch.run import Run

BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}
RULES = DASHBOARDS / "alerts.yaml"
GRAFANAS_OWN = {("id",), ("annotations", "list", "builtIn"), ("templating", "list", "definition")}
"""What Grafana writes itself and its published models leave out."""


def targets(board: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(panel["title"], target) for panel in board["panels"] for target in panel.get("targets", ())]


def needs(program: str) -> None:
    if not shutil.which(program):
        assert os.environ.get("CI") != "true", f"{program} is not installed"
        pytest.skip(f"{program} is not installed (Debian's package prometheus)")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return figures.site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def prometheus(film: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[figures.Prometheus]:
    needs("prometheus")
    fake = figures.slurm(film.folder.parents[1])
    with figures.exporter(film.folder.parent, PATH=fake.path) as address:
        server = figures.Prometheus(tmp_path_factory.mktemp("prometheus"), address, RULES)
        try:
            server.until_scraped(4)
            yield server
        finally:
            server.stop()


@pytest.mark.parametrize(("name", "title", "target"), [
    pytest.param(name, title, target, id=f"{name}-{title}-{target['refId']}")
    for name, board in BOARDS.items() for title, target in targets(board)])  # fmt: skip
def test_a_panel_has_data(prometheus: figures.Prometheus, film: Run, name: str, title: str, target: dict) -> None:
    values = {"$cluster": ".*", "$user": ".*", "$run": film.id}
    query = re.sub(r"\$\w+", lambda found: values[found[0]], target["expr"])
    if target["instant"]:
        found = prometheus.ask("query", query=query)["result"]
    else:
        span = {"start": f"{time.time() - 300:.3f}", "end": f"{time.time():.3f}", "step": "1"}
        found = prometheus.ask("query_range", query=query, **span)["result"]
    assert found, f"{name}: {title}: nothing for {query}"
    legend = re.findall(r"{{(\w+)}}", target["legendFormat"])
    assert all(label in one["metric"] for one in found for label in legend), f"{found[0]['metric']} lack {legend}"
    last = [float(one["value"][1] if "value" in one else one["values"][-1][1]) for one in found]
    assert all(value == value for value in last), f"{title}: not a number"


def test_variables_have_values(prometheus: figures.Prometheus, film: Run) -> None:
    for board in BOARDS.values():
        for variable in board["templating"]["list"][1:]:
            series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()
            query = series.replace("$cluster", ".*")
            values = {s[label] for s in prometheus.ask("series", **{"match[]": query})}
            assert values == {{"cluster": "local", "user": getpass.getuser(), "run": film.id}[label]}


def test_figures_arrive_as_they_were_sent(prometheus: figures.Prometheus, film: Run) -> None:
    at = f'{{cluster="local",run="{film.id}",stage='
    assert prometheus.value(f'hpc_run_shards{at}"pair",state="done"}}') == 6
    assert prometheus.value(f'hpc_train_mfu_ratio{at}"train"}}') == pytest.approx(0.41)
    assert prometheus.value("hpc_exporter_runs") == 1
    kinds = {name: about[0]["type"] for name, about in prometheus.ask("metadata").items() if name.startswith("hpc_")}
    assert kinds and all((kind == "counter") == name.endswith("_total") for name, kind in kinds.items())


def test_rules_are_loaded(prometheus: figures.Prometheus) -> None:
    groups = prometheus.ask("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == sum(len(group["rules"]) for group in yaml.safe_load(RULES.read_text())["groups"])
    assert not [rule["name"] for rule in rules if rule["health"] == "err"]


def test_the_page_is_what_promtool_accepts(film: Run) -> None:
    needs("promtool")
    page = film.folder.parents[1] / "page.prom"
    runs.hpc("exporter", film.folder.parent, "--textfile", page, cwd=film.folder)
    done = subprocess.run(["promtool", "check", "metrics"], stdin=page.open(), capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr


def test_rules_are_what_promtool_accepts() -> None:
    needs("promtool")
    done = subprocess.run(["promtool", "check", "rules", "--lint-fatal", RULES], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


ALERTS: dict[str, tuple[dict[str, str], int, dict[str, str]]] = {
    # alert: series, minutes after which it must fire, its labels
    "HpcRunFailed": ({'hpc_run_state{cluster="c",run="r",state="failed"}': "1x60"}, 6,
                     {"cluster": "c", "run": "r", "state": "failed"}),
    "HpcRunIncomplete": ({'hpc_run_state{cluster="c",run="r",state="incomplete"}': "1x60"}, 31,
                         {"cluster": "c", "run": "r", "state": "incomplete"}),
    "HpcRunSilent": ({'hpc_run_last_progress_timestamp_seconds{cluster="c",run="r",stage="a"}': "60x60",
                      'hpc_run_state{cluster="c",run="r",state="running"}': "1x60"}, 40, {"cluster": "c", "run": "r"}),
    "HpcShardsFailing": ({'hpc_run_shards{cluster="c",run="r",stage="a",state="failed"}': "9x60",
                          'hpc_run_shards{cluster="c",run="r",stage="a",state="done"}': "41x60"}, 11,
                         {"cluster": "c", "run": "r", "stage": "a"}),
    "HpcNodeFailures": ({'hpc_run_failed_shards{cluster="c",run="r",stage="a",class="node"}': "3x60"}, 6,
                        {"cluster": "c", "run": "r", "stage": "a"}),
    "HpcTasksNeverStart": (
        {'hpc_run_pending_tasks{cluster="c",run="r",stage="a",reason="DependencyNeverSatisfied"}': "2x60"}, 31,
        {"cluster": "c", "run": "r", "stage": "a", "reason": "DependencyNeverSatisfied"}),
    "HpcGpusIdle": ({'hpc_run_gpu_utilization_ratio{cluster="c",run="r",stage="a"}': "0.1x60",
                     'hpc_run_gpu_seconds_total{cluster="c",run="r",stage="a"}': "0+480x60"}, 33,
                    {"cluster": "c", "run": "r", "stage": "a"}),
    "HpcMemoryShort": ({'hpc_run_memory_peak_bytes{cluster="c",run="r",stage="a"}': "97x60",
                        'hpc_run_memory_requested_bytes{cluster="c",run="r",stage="a"}': "100x60"}, 11,
                       {"cluster": "c", "run": "r", "stage": "a"}),
    "HpcLossNotFinite": ({'hpc_train_loss{cluster="c",run="r",stage="a"}': "NaN " * 60}, 6,
                         {"cluster": "c", "run": "r", "stage": "a"}),
    "HpcStepsSkipped": ({'hpc_train_skipped_steps_total{cluster="c",run="r",stage="a"}': "0+1x60"}, 30,
                        {"cluster": "c", "run": "r", "stage": "a"}),
    "HpcTrainingWaitsForData": ({'hpc_train_data_wait_ratio{cluster="c",run="r",stage="a"}': "0.3x60"}, 16,
                                {"cluster": "c", "run": "r", "stage": "a"}),
    "HpcExporterStale": ({"hpc_exporter_last_read_timestamp_seconds": "0x60"}, 21, {}),
    "HpcRunsUnreadable": ({"hpc_exporter_unreadable_runs": "1x60"}, 31, {}),
}  # fmt: skip
FINE = {
    'hpc_run_state{cluster="c",run="r",state="running"}': "1x60",
    'hpc_run_last_progress_timestamp_seconds{cluster="c",run="r",stage="a"}': "0+60x60",
    'hpc_run_last_progress_timestamp_seconds{cluster="c",run="r",stage="b"}': "0x60",
    'hpc_run_shards{cluster="c",run="r",stage="a",state="failed"}': "1x60",
    'hpc_run_shards{cluster="c",run="r",stage="a",state="done"}': "3x60",
    'hpc_run_failed_shards{cluster="c",run="r",stage="a",class="node"}': "1x60",
    'hpc_run_pending_tasks{cluster="c",run="r",stage="a",reason="JobArrayTaskLimit"}': "2000x60",
    'hpc_run_gpu_utilization_ratio{cluster="c",run="r",stage="a"}': "0.9x60",
    'hpc_run_gpu_utilization_ratio{cluster="c",run="r",stage="ended"}': "0.1x60",
    'hpc_run_gpu_seconds_total{cluster="c",run="r",stage="a"}': "0+480x60",
    'hpc_run_gpu_seconds_total{cluster="c",run="r",stage="ended"}': "480x60",
    'hpc_run_memory_peak_bytes{cluster="c",run="r",stage="a"}': "50x60",
    'hpc_run_memory_requested_bytes{cluster="c",run="r",stage="a"}': "100x60",
    'hpc_train_loss{cluster="c",run="r",stage="a"}': "3x60",
    'hpc_train_skipped_steps_total{cluster="c",run="r",stage="a"}': "4x60",
    'hpc_train_data_wait_ratio{cluster="c",run="r",stage="a"}': "0.01x60",
    "hpc_exporter_last_read_timestamp_seconds": "0+60x60",
    "hpc_exporter_unreadable_runs": "0x60",
}


def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    """promtool's unit tests of rules: figures over an hour, and which alerts there are."""
    needs("promtool")
    rules = {rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
    assert set(rules) == set(ALERTS)
    series = lambda some: [{"series": name, "values": values} for name, values in some.items()]
    cases = []
    for name, (some, minute, labels) in ALERTS.items():
        expected = {"exp_labels": labels | rules[name]["labels"]}
        cases.append({"interval": "1m", "input_series": series(some), "alert_rule_test": [
            {"eval_time": "1m", "alertname": name, "exp_alerts": []},
            {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": [expected]},
        ]})  # fmt: skip
        cases.append({"interval": "1m", "input_series": series(FINE), "alert_rule_test": [
            {"eval_time": "58m", "alertname": name, "exp_alerts": []}]})  # fmt: skip
    words = re.compile(r"\n +annotations:(\n +(summary|description): .*)+")  # promtool would compare them, too
    (tmp_path / "rules.yaml").write_text(words.sub("", RULES.read_text()))
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": cases}))
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_metrics_that_there_are() -> None:
    """In dashboards and rules."""
    said = RULES.read_text() + "".join(json.dumps(board) for board in BOARDS.values())
    named = set(re.findall(r"\bhpc_((?:run|train|exporter)_\w+)", said))
    assert named and named <= set(ABOUT), named - set(ABOUT)


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_imports_without_edits(name: str) -> None:
    board = BOARDS[name]
    assert board["uid"] == name and board["id"] is None and board["schemaVersion"] >= 38
    assert {"slurm", "hpc"} <= set(board["tags"]) and "__inputs" not in board
    source, cluster, *_ = board["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert cluster["name"] == "cluster" and cluster["allValue"] == ".*"
    known = {variable["name"] for variable in board["templating"]["list"]}
    ids, taken = set(), set()
    for panel in board["panels"]:
        assert panel["id"] not in ids, "ids are the panels' own"
        ids.add(panel["id"])
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, f"{panel['title']} lies over another"
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= known
            assert "hpc_exporter" in target["expr"] or 'cluster=~"$cluster"' in target["expr"]


@pytest.mark.parametrize("name", BOARDS)
def test_grafanas_models_take_all_of_it(name: str) -> None:
    sdk = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
    from grafana_foundation_sdk.cog import encoder, plugins

    plugins.register_default_plugins()
    back = json.loads(encoder.JSONEncoder().encode(sdk.Dashboard.from_json(BOARDS[name])))
    lost = set(_lost(BOARDS[name], back, ()))
    assert lost <= GRAFANAS_OWN, lost - GRAFANAS_OWN


def _lost(sent: Any, back: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Paths of what did not come back as it was."""
    if isinstance(sent, dict) and isinstance(back, dict):
        for key, value in sent.items():
            yield from _lost(value, back[key], (*path, key)) if key in back else [(*path, key)]
    elif isinstance(sent, list) and isinstance(back, list) and len(sent) == len(back):
        for one, other in zip(sent, back, strict=True):
            yield from _lost(one, other, path)
    elif sent != back:
        yield path
