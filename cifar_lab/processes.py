"""Child processes: a fork server to start them, and a guard that ends them with their parent."""

import multiprocessing
import multiprocessing.util
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from threading import Thread
from types import ModuleType

LONGEST = 60  # bytes of a temporary folder's path: the paths of multiprocessing's sockets in it may have 104
SHORT = "/tmp"
PRELOAD = ("cifar_lab.execution.experiment", "mlflow.store.tracking.sqlalchemy_store")  # what workers need


def fork_server(preload: Sequence[str]) -> ForkServerContext:
    """A context whose processes are forked from a server that has imported `preload`, so that they start at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*preload])
    own = tempfile.gettempdir()
    if len(os.fsencode(own)) > LONGEST:
        tempfile.tempdir = SHORT
        multiprocessing.util.get_temp_dir()  # creates the folder that multiprocessing keeps its sockets in
        tempfile.tempdir = own
    return context


@contextmanager
def without_main() -> Iterator[None]:
    """Processes started in this block do not import `__main__`: a script without a guard would run again in each."""
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def follow_parent() -> None:
    """End this process as soon as its parent ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    Thread(target=follow, daemon=True).start()
