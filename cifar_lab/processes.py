"""Where other processes come from, and that they end with the one that started them."""

import multiprocessing
import multiprocessing.util
import os
import tempfile
from collections.abc import Sequence
from multiprocessing.context import BaseContext
from threading import Thread

LONGEST = 60  # bytes of a folder in which multiprocessing can still name its sockets: their paths end at 104
SHORT = "/tmp"
PRELOAD = ("cifar_lab.execution.experiment", "mlflow.store.tracking.sqlalchemy_store")  # what workers need


def fork_server(preload: Sequence[str]) -> BaseContext:
    """The context whose processes are forks of a server that has imported `preload`: they start at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*preload])
    own = tempfile.gettempdir()
    if len(os.fsencode(own)) > LONGEST:
        tempfile.tempdir = SHORT
        multiprocessing.util.get_temp_dir()  # is made, and kept for the sockets
        tempfile.tempdir = own
    return context


def follow_parent() -> None:
    """End this process as soon as the one that started it ends."""

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    Thread(target=follow, daemon=True).start()
