"""One trial of a sweep in a process of its own: trained or continued, cut short where there is no hope."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import optuna
from mlflow.entities import Run
from pytorch_lightning import Callback, LightningModule, Trainer
from sqlalchemy.exc import SQLAlchemyError

from cifar_lab import runs, store, tracking
from cifar_lab.config import Config, UserError
from cifar_lab.train import train
from cifar_lab.worker import Stop, opened, run_to_train, working

DATABASE = "optuna.db"
FIRST_TRIALS = 5  # before a median means something


def open_study(name: str) -> optuna.Study:
    """The study of a sweep, made if it is not there, in Optuna's own database beside `mlflow.db`.

    Raises UserError if that can't be used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options, file = {"connect_args": {"timeout": 20}}, store.home() / DATABASE
    try:
        return optuna.create_study(
            storage=optuna.storages.RDBStorage(f"sqlite:///{file}", engine_kwargs=options),
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(FIRST_TRIALS, n_min_trials=FIRST_TRIALS),
        )
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise UserError(f"the trials in {file} can't be read ({reason}); move it away to begin anew") from None


class _Prune(Callback):
    """Tells Optuna every epoch's val/acc, and ends the training after one that is below the median of the others."""

    def __init__(self, study: optuna.Study, number: int) -> None:
        trial = study.trials[number]
        self.trial, self.told, self.pruned = optuna.Trial(study, trial._trial_id), trial.intermediate_values, False

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        completed = trainer.current_epoch + 1
        if completed not in self.told:  # before the worker died
            self.trial.report(float(trainer.callback_metrics["val/acc"]), completed)
        self.pruned = completed < trainer.max_epochs and self.trial.should_prune()
        trainer.should_stop = trainer.should_stop or self.pruned


def train_trial(parent: Run, config: Config, tags: Mapping[str, str], dataset_folder: Path) -> tuple[float, bool]:
    """Train the trial with these tags under `parent`, or what is left of it; its last val/acc, and if it was cut short.

    The body of a worker process. Raises UserError, which says in one line what went wrong.
    """
    with working(tags) as client:
        before = runs.children(client, parent, f"tags.trial = '{tags['trial']}'")
        for run in before:
            if run.info.status == "FINISHED":  # but the driver was gone before it could tell Optuna
                return run.data.metrics["val/acc"], "pruned" in run.data.tags
        dataset = opened(dataset_folder, config)
        prune = _Prune(open_study(tags["study"]), int(tags["trial"]))
        run = run_to_train(client, parent, before, tags, f"{parent.info.run_name}-trial{tags['trial']}")
        checkpoint, seed = store.checkpoint_of(run.info.run_id), int(tags["seed"])
        with tracking.continued_run(client, run, config, dataset) as run_id:
            with tracking.EpochUploads(client, run_id, dataset) as uploads:
                callbacks = [Stop(), prune]
                result = train(
                    config, seed, dataset, checkpoint, tags["accelerator"], uploads.report, callbacks, test=False
                )
            if prune.pruned:
                tracking.tag_pruned(client, run_id)
        shutil.rmtree(checkpoint.parent, ignore_errors=True)
        return result.epochs[-1].metrics["val/acc"], prune.pruned
