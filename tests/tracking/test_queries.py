import math
import time
from collections import Counter
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
from mlflow.entities import Metric
from rich.console import Console

from cifar_lab.analysis.comparison import summarise
from cifar_lab.errors import UserError
from cifar_lab.execution.progress import Progress, clock
from cifar_lab.tracking import queries, store
from cifar_lab.tracking.promotion import promote
from cifar_lab.tracking.summaries import log_repeats, results_table


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("store"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield store.connect(make=True)


@pytest.fixture
def experiment_id(client, request):
    return store.open_experiment(client, request.node.name)


CONFIG = {"config_hash": "c", "experiment": "x"}


def add_run(client, experiment_id, metrics, status="FINISHED", split="s", started=None, **tags):
    tags = {"kind": "run", "seed": "0", "data_digest": "d", "split_digest": split, **CONFIG, **tags}
    name = f"x-seed{tags.get('seed')}"
    run_id = client.create_run(experiment_id, run_name=name, tags=tags, start_time=started).info.run_id
    for key, values in metrics.items():
        points = [Metric(key, value, 0, step) for step, value in enumerate(values, 1)]
        client.log_batch(run_id, metrics=points)
    if status != "RUNNING":
        client.set_terminated(run_id, status)
    return run_id


def metrics(accuracy, loss=1.0):
    return {"val/acc": [accuracy], "val/loss": [loss]}


def test_best_run_is_by_accuracy_then_loss_then_start(client, experiment_id):
    assert queries.ranked_runs(client, experiment_id, "d", "s") == []
    add_run(client, experiment_id, metrics(0.5, 0.1), started=1)
    add_run(client, experiment_id, metrics(0.6, 0.9), started=2)
    late = add_run(client, experiment_id, metrics(0.6, 0.8), started=4)
    assert queries.ranked_runs(client, experiment_id, "d", "s")[0].info.run_id == late
    early = add_run(client, experiment_id, metrics(0.6, 0.8), started=3)
    assert queries.ranked_runs(client, experiment_id, "d", "s")[0].info.run_id == early


def test_best_run_ignores_unfinished_broken_and_foreign_runs(client, experiment_id):
    good = add_run(client, experiment_id, metrics(0.3))
    for status in ("RUNNING", "FAILED", "KILLED"):
        add_run(client, experiment_id, metrics(0.9), status)
    add_run(client, experiment_id, metrics(math.inf))
    add_run(client, experiment_id, metrics(math.nan))
    add_run(client, experiment_id, {"test/acc": [0.99]})
    add_run(client, experiment_id, metrics(0.9), split="other")
    add_run(client, experiment_id, metrics(0.9), data_digest="other")
    add_run(client, experiment_id, metrics(0.9), kind="repeats")
    assert [run.info.run_id for run in queries.ranked_runs(client, experiment_id, "d", "s")] == [good]


def test_champion_stays_if_the_best_run_was_chosen_on_other_images(client, experiment_id):
    first = add_run(client, experiment_id, metrics(0.8), best="true")
    client.create_registered_model("x")
    client.create_model_version("x", source="nowhere", run_id=first)
    client.set_registered_model_alias("x", "champion", "1")
    other = add_run(client, experiment_id, metrics(0.9), split="other")
    dataset = SimpleNamespace(name="x")
    reason = "the champion stays, because it was chosen on other validation images"
    assert promote(client, client.get_run(other), dataset) == reason
    assert promote(client, client.get_run(first), dataset) == ""
    assert client.get_model_version_by_alias("x", "champion").run_id == first
    assert [client.get_run(run_id).data.tags.get("best") for run_id in (first, other)] == ["true", "true"]


def test_history_is_ordered_by_epoch(client, experiment_id):
    run_id = add_run(client, experiment_id, {"val/acc": [0.1, 0.3, 0.2]})
    assert queries.history(client, run_id, "val/acc").tolist() == [0.1, 0.3, 0.2]
    client.log_batch(run_id, metrics=[Metric("val/acc", 0.9, 5, 2)])
    assert queries.history(client, run_id, "val/acc").tolist() == [0.1, 0.9, 0.2]


def test_of_a_seed_that_finished_twice_the_first_run_counts(client, experiment_id):
    parent = client.create_run(experiment_id)
    under = {"mlflow.parentRunId": parent.info.run_id}
    first = add_run(client, experiment_id, metrics(0.1), seed="1", started=1, **under)
    add_run(client, experiment_id, metrics(0.9), seed="1", started=2, **under)
    other = add_run(client, experiment_id, metrics(0.2), seed="0", started=3, **under)
    add_run(client, experiment_id, metrics(0.2), "FAILED", seed="2", **under)
    assert [run.info.run_id for run in queries.finished_runs(client, parent)] == [other, first]


def test_of_one_seed_that_is_left_no_spread_of_two_remains(client, experiment_id):
    def log(values, ended):
        curves = {"train": {metric: np.array([[value] for value in values]) for metric in ("loss", "acc")}}
        log_repeats(client, parent, {"test/acc": dict(enumerate(values))}, curves, ended)
        found = client.get_run(parent).data.metrics
        return [found.get(f"test/acc_{name}", "none") for name in ("mean", "std", "ci_low")]

    parent = client.create_run(experiment_id).info.run_id
    assert log([0.5], 1) == [0.5, "none", "none"]
    assert log([0.25, 0.75], 2) == pytest.approx([0.5, 0.125**0.5, summarise([0.25, 0.75]).ci_low])
    assert log([0.75], 3) == pytest.approx([0.75, math.nan, math.nan], nan_ok=True)
    assert log([0.25, 0.75], 4)[0] == 0.5


def test_the_table_of_many_seeds_has_the_statistics_first_and_fits(client, experiment_id):
    values = {name: {seed: seed / 1000 for seed in range(500)} for name in ("val/acc", "val/loss", "test/acc")}
    summaries = {name: summarise(list(of.values())) for name, of in values.items()}
    table = results_table(values, summaries)
    lines = table.splitlines()
    assert lines[2] == "| **mean** | 0.2495 | 0.2495 | 0.2495 |"
    assert lines[5] == "| 0 | 0.0000 | 0.0000 | 0.0000 |"
    assert lines[-1] == "and 400 more seeds"
    assert len(table) < 8000


def test_a_second_process_finds_the_experiment_and_a_deleted_one_is_named(client, experiment_id, request):
    assert store.open_experiment(client, request.node.name) == experiment_id
    client.delete_experiment(experiment_id)
    with pytest.raises(UserError, match=f"was deleted; restore it: .*--experiment-id {experiment_id}"):
        store.open_experiment(client, request.node.name)


def test_unreadable_store_costs_one_line(workplace, monkeypatch):
    (workplace / "mlflow.db").write_text("not a database")
    with pytest.raises(UserError, match=r"cannot open the runs: .*file is not a database$"):
        store.connect()


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_shows_running_runs_and_what_is_left(client, experiment_id, terminal):
    parent = client.create_run(experiment_id, run_name="x")
    under = {"mlflow.parentRunId": parent.info.run_id}
    add_run(client, experiment_id, {}, "KILLED", seed="0", started=5, **under)
    console = Console(file=StringIO(), force_terminal=terminal, width=100)
    with Progress(client, console, {parent: [1, 1, 2, 2]}, jobs=2) as progress:
        now = int(1000 * time.time())
        values = {"train/acc": [0.25, 0.5], "val/acc": [0.125, 0.375], "epoch_seconds": [4.0, 6.0]}
        add_run(client, experiment_id, values, "RUNNING", seed="0", started=now, **under)
        progress.started -= 20
        progress.update(Counter({parent.info.run_id: 3}), total=8)
        shown = console.file.getvalue() if not terminal else ""
        if terminal:
            with console.capture() as capture:
                console.print(progress.live.renderable)
            shown = capture.get()
    assert shown.count("x-seed0") == 1
    assert "2/4" in shown
    assert "0.5000" in shown
    assert "0.3750" in shown
    assert "0:20" in shown  # two epochs left, each as long as the two before together
    assert ("5 of 8 runs done, 0:20 passed" in shown) == terminal


def test_clock():
    assert [clock(seconds) for seconds in (0, 59.6, 61, 3723, float("nan"))] == ["0:00", "1:00", "1:01", "1:02:03", "-"]
