"""What a user sees while runs train: a live table on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping

from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from rich.console import Console
from rich.live import Live
from rich.table import Table

from cifar_lab import runs

COLUMNS = ("run", "epoch", "train/acc", "val/acc", "left")


class Progress:
    """Follows the runs under some parents by reading the store.

    parents: each with the epochs that its runs train; total: how many runs are to be trained now.
    """

    def __init__(self, client: MlflowClient, console: Console, parents: Mapping[Run, int], total: int) -> None:
        self.client, self.console, self.parents, self.total = client, console, parents, total
        self.started = time.time()
        self.shown: dict[str, int] = {}
        self.live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Progress":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def update(self, done: int) -> None:
        """Show every running run; `done` runs have ended."""
        rows = [self._row(run, epochs) for parent, epochs in self.parents.items() for run in self._running(parent)]
        if self.live:
            table = Table(
                *COLUMNS,
                box=None,
                caption=f"{done} of {self.total} runs done, {clock(time.time() - self.started)} passed",
            )
            for _, _, *texts in rows:
                table.add_row(*texts)
            self.live.update(table)
            return
        for run_id, epoch, name, *texts in rows:
            if epoch > self.shown.get(run_id, 0):
                self.shown[run_id] = epoch
                described = ", ".join(f"{column} {text}" for column, text in zip(COLUMNS[1:], texts, strict=True))
                self.console.print(
                    f"{clock(time.time() - self.started)}  {name}: {described}  [{done} of {self.total} runs done]",
                    soft_wrap=True,
                )

    def _running(self, parent: Run) -> list[Run]:
        running = runs.children(self.client, parent, "RUNNING")
        return [run for run in running if run.info.start_time >= 1000 * self.started]

    def _row(self, run: Run, epochs: int) -> tuple[str, int, str, str, str, str, str]:
        histories = [runs.history(self.client, run.info.run_id, metric) for metric in COLUMNS[2:4]]
        epoch = min(map(len, histories))
        passed = time.time() - run.info.start_time / 1000
        accuracies = [f"{values[epoch - 1]:.4f}" if epoch else "-" for values in histories]
        left = clock(passed / epoch * (epochs - epoch)) if epoch else "-"
        return run.info.run_id, epoch, run.info.run_name, f"{epoch}/{epochs}", *accuracies, left


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
