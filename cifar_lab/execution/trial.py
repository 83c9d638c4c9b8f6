"""Trials of a sweep: their database, and pruning."""

import optuna
from pytorch_lightning import Callback, LightningModule, Trainer
from sqlalchemy.exc import SQLAlchemyError

from cifar_lab.errors import UserError, first_line
from cifar_lab.tracking import places

DATABASE = "optuna.db"
FIRST_TRIALS = 5  # are not pruned: a median of fewer says little


def open_study(name: str) -> optuna.Study:
    """The study of a sweep, in Optuna's database beside `mlflow.db`; created if missing.

    Raises UserError if the database can't be used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options, file = {"connect_args": {"timeout": 20}}, places.home() / DATABASE
    try:
        return optuna.create_study(
            storage=optuna.storages.RDBStorage(f"sqlite:///{file}", engine_kwargs=options),
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(FIRST_TRIALS, n_min_trials=FIRST_TRIALS),
        )
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        reason = first_line(error.__cause__ or error)
        raise UserError(f"the trials in {file} can't be read ({reason}); move it away to start over") from None


class Prune(Callback):
    """Stops a run of a trial that is below the median of the others, or that has ended already.

    Only the run that `decides`, that of the trial's first seed, reports every epoch's val/acc to Optuna, so that trials
    are compared with one seed.
    """

    def __init__(self, name: str, number: int, decides: bool) -> None:
        self.study, self.number, self.decides = open_study(name), number, decides
        trial = self.study.trials[number]
        self.trial, self.reported = optuna.Trial(self.study, trial._trial_id), trial.intermediate_values

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        completed = trainer.current_epoch + 1
        stop = self.study.trials[self.number].state.is_finished()
        if self.decides and not stop:
            if completed not in self.reported:
                self.trial.report(float(trainer.callback_metrics["val/acc"]), completed)
            stop = self.trial.should_prune()
        if stop and completed != trainer.max_epochs:
            trainer.should_stop = True
