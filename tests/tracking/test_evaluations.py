"""Metrics added to a finished run: a repeated one leaves no point, a changed one replaces the old one."""

import shutil

from mlflow.tracking import MlflowClient

from cifar_lab.tracking.evaluations import log_values


def test_equal_values_are_logged_once_and_lower_ones_replace_higher_ones(empty_database, tmp_path):
    shutil.copy(empty_database, tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = client.create_run(client.create_experiment("digits"))
    client.log_metric(run.info.run_id, "test/acc", 0.8, timestamp=1000, step=2)
    client.set_terminated(run.info.run_id, "FINISHED", end_time=1001)
    for value in (0.9, 0.9, 0.5, 0.5):
        log_values(client, run, {"corruptions/acc_mean": value}, beside="test/acc")
        assert client.get_run(run.info.run_id).data.metrics["corruptions/acc_mean"] == value
    points = client.get_metric_history(run.info.run_id, "corruptions/acc_mean")
    assert [(point.value, point.timestamp, point.step) for point in points] == [(0.9, 1000, 2), (0.5, 1001, 2)]
    info = client.get_run(run.info.run_id).info
    assert (info.status, info.end_time) == ("FINISHED", 1001)
