"""Progress of training: a live table on a terminal, otherwise plain lines."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from rich.console import Console
from rich.live import Live
from rich.table import Table

from cifar_lab.tracking import queries

COLUMNS = ("run", "epoch", "train/acc", "val/acc", "left")


class Progress:
    """Follows the runs under some parents by reading the store; `jobs` of them train at a time.

    parents: each with the relative costs of the epochs of its runs.
    """

    def __init__(
        self, client: MlflowClient, console: Console, parents: Mapping[Run, Sequence[float]], jobs: int
    ) -> None:
        self.client, self.console, self.parents, self.jobs = client, console, parents, jobs
        self.started = time.time()
        self.shown: dict[str, int] = {}  # epochs, by run id
        self.pace: dict[str, float] = {}  # seconds per unit of cost, by the parent's id
        self.read: dict[str, tuple[dict, list[np.ndarray]]] = {}  # last values and histories, by run id
        self.live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Progress":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def update(self, pending: Counter[str], total: int) -> None:
        """Show the running runs and the time left; pending: the runs of `total` that have not ended, by parent id."""
        table = Table(*COLUMNS, box=None)
        left = 0.0
        for parent, costs in self.parents.items():
            parent_id, epochs = parent.info.run_id, len(costs)
            if waiting := pending[parent_id]:
                left += waiting * sum(costs) * self.pace.get(parent_id, float("nan"))
            for run in queries.running_under(self.client, parent):
                seconds, *histories = self._histories(run)
                epoch = len(seconds)
                if epoch == 0:
                    table.add_row(run.info.run_name, f"0/{epochs}", "-", "-", "-")
                    continue
                self.pace[parent_id] = seconds.sum() / sum(costs[:epoch])
                left -= seconds.sum()
                accuracies = [f"{values[epoch - 1]:.4f}" if len(values) else "-" for values in histories]
                remaining = clock(sum(costs[epoch:]) * self.pace[parent_id])
                row = (run.info.run_name, f"{epoch}/{epochs}", *accuracies, remaining)
                table.add_row(*row)
                if not self.live and epoch > self.shown.get(run.info.run_id, 0):
                    self.shown[run.info.run_id] = epoch
                    text = "  ".join(f"{column} {value}" for column, value in zip(COLUMNS[1:], row[1:], strict=True))
                    self.console.print(f"{clock(time.time() - self.started)}  {row[0]}  {text}", soft_wrap=True)
        if self.live:
            done = f"{total - pending.total()} of {total} runs done"
            table.caption = f"{done}, {clock(time.time() - self.started)} passed, {clock(left / self.jobs)} left"
            self.live.update(table)

    def _histories(self, run: Run) -> list[np.ndarray]:
        """Histories of epoch_seconds and both accuracies; read only if a metric changed, to spare the server."""
        last, histories = self.read.get(run.info.run_id, (None, []))
        if run.data.metrics != last:
            metrics = ("epoch_seconds", *COLUMNS[2:4])
            histories = [queries.history(self.client, run.info.run_id, metric) for metric in metrics]
            self.read[run.info.run_id] = run.data.metrics, histories
        return histories


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`; `-` for nan."""
    if seconds != seconds:
        return "-"
    minutes, rest = divmod(round(max(0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
