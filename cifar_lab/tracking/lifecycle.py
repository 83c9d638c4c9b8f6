"""Creating, describing and ending parent and child runs."""

import json
import os
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, InputTag, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from cifar_lab.config import Config
from cifar_lab.data.cache import Dataset
from cifar_lab.tracking import queries
from cifar_lab.tracking.artifacts import NETWORK, log_texts
from cifar_lab.tracking.store import explain, short_timeouts

ERROR = "error.txt"  # artifact: traceback of a failed run
COMPARED = "compared_seeds"  # tag of a parent: the seeds of its first comparison


def open_parent(
    client: MlflowClient, experiment_id: str, name: str, config: Config, dataset: Dataset, tags: Mapping[str, str]
) -> Run:
    """The parent run with the statistics over the seeds of a config; created if it does not exist."""
    run = queries.find_parent(client, experiment_id, tags["config_hash"])
    run = run or create_run(client, experiment_id, name, {**tags, "kind": "repeats"})
    _describe(client, run.info.run_id, config.flat(), config, dataset)
    return client.get_run(run.info.run_id)


def open_sweep(
    client: MlflowClient,
    experiment_id: str,
    tags: Mapping[str, str],
    base: Config,
    dataset: Dataset,
    ranges: Mapping[str, object],
) -> Run:
    """The parent run of a sweep's trials, named after its study, with the ranges as parameters; created if missing."""
    run = queries.find_sweep(client, experiment_id, tags["study"])
    run = run or create_run(client, experiment_id, tags["study"], {**tags, "kind": "sweep"})
    _describe(client, run.info.run_id, {**base.flat(), **ranges}, base, dataset)
    return client.get_run(run.info.run_id)


def open_trial(client: MlflowClient, sweep: Run, config: Config, dataset: Dataset, tags: Mapping[str, str]) -> Run:
    """The parent run of a trial's seeds, under that of its sweep; created if missing. It is RUNNING."""
    found = queries.children(client, sweep, f"tags.kind = 'trial-repeats' and tags.trial = '{tags['trial']}'")
    tags = {**tags, "kind": "trial-repeats", "mlflow.parentRunId": sweep.info.run_id}
    name = f"{sweep.info.run_name}-trial{tags['trial']}"
    run = found[0] if found else create_run(client, sweep.info.experiment_id, name, tags)
    mark(client, run.info.run_id, "RUNNING")
    _describe(client, run.info.run_id, config.flat(), config, dataset)
    return client.get_run(run.info.run_id)


def tag_pruned(client: MlflowClient, run_id: str) -> None:
    """Tag a trial, or one of its runs, as stopped early."""
    client.set_tag(run_id, "pruned", "true")


def _describe(
    client: MlflowClient, run_id: str, parameters: Mapping[str, object], config: Config, dataset: Dataset
) -> None:
    """Log parameters, config and images. Parent first: MLflow fails if two runs log a new data set at the same time."""
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in parameters.items()])
    texts = {"config.toml": config.toml()} | ({NETWORK: config.model.source} if config.model.source else {})
    log_texts(client, run_id, texts)
    client.log_inputs(run_id, _inputs(dataset))


def create_run(client: MlflowClient, experiment_id: str, name: str, tags: Mapping[str, str]) -> Run:
    """A new run; deletes its duplicates, if the connection to the server broke."""
    run = client.create_run(experiment_id, run_name=name, tags=dict(tags))
    for duplicate in queries.duplicates(client, run):
        client.delete_run(duplicate.info.run_id)
    return run


@contextmanager
def run_lifecycle(client: MlflowClient, run: Run, config: Config, dataset: Dataset) -> Iterator[str]:
    """Start or continue a run; mark it FINISHED, KILLED after a signal, or FAILED with the reason in tag `error`."""
    run_id = run.info.run_id
    try:
        client.update_run(run_id, "RUNNING")
        if "error" in run.data.tags:
            client.delete_tag(run_id, "error")
        _describe(client, run_id, {**config.flat(), "seed": run.data.tags["seed"]}, config, dataset)
        yield run_id
    except BaseException as error:
        with suppress(MlflowException, OSError), short_timeouts():  # the cause may make these calls fail too
            stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
            client.set_terminated(run_id, "KILLED" if stopped else "FAILED")
            if not stopped:
                client.set_tag(run_id, "error", explain(error) or f"{type(error).__name__}: {error}")
            if not (stopped or explain(error)):
                client.log_text(run_id, traceback.format_exc(), ERROR)
                error.add_note(ERROR)
        raise
    os.sync()  # so that a finished run has its artifacts even after a power cut
    client.set_terminated(run_id, "FINISHED")


def _inputs(dataset: Dataset) -> list[DatasetInput]:
    return [
        DatasetInput(
            DatasetEntity(
                name=f"{dataset.name}-{split}",
                digest=dataset.digest[:32],
                source_type="images",
                source=json.dumps({"title": dataset.title}),
                profile=json.dumps({"images": len(dataset.labels[split]), "classes": len(dataset.classes)}),
            ),
            [InputTag("mlflow.data.context", context)],
        )
        for split, context in (("train", "training"), ("test", "test"))
    ]


def mark_compared(client: MlflowClient, parent: Run, seeds: Iterable[int]) -> None:
    """Record the seeds of the first comparison of the repeats under `parent`: later ones may be optional stopping."""
    if COMPARED not in parent.data.tags:
        client.set_tag(parent.info.run_id, COMPARED, ",".join(map(str, sorted(seeds))))


def mark(client: MlflowClient, run_id: str, status: str) -> None:
    """Set the status of a run; unless it is RUNNING, the run ends now."""
    (client.update_run if status == "RUNNING" else client.set_terminated)(run_id, status)
