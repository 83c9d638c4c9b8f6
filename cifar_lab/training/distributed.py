"""The processes of one run on several devices: the caller is rank 0 and starts the other ranks."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from threading import Event, Thread
from typing import Any

import torch.distributed as dist
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy

from cifar_lab.errors import UserError, first_line
from cifar_lab.processes import follow_parent, fork_server, without_main

POLL_SECONDS = 0.05
END_SECONDS = 1.0
NOTICE_SECONDS = 10.0  # for a rank to notice by itself that another one has died
DIED = "one of its processes died (out of memory?); start again to continue"


class _StartedRanks(LightningEnvironment):
    """Lightning's environment for ranks that are already running; this process is `rank`."""

    creates_processes_externally = True

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def local_rank(self) -> int:
        return self.rank


def ddp(rank: int) -> DDPStrategy:
    """Lightning's strategy for rank `rank`, for use within `ranks`."""
    return DDPStrategy(cluster_environment=_StartedRanks(rank), broadcast_buffers=False)


@contextmanager
def ranks(devices: int, accelerator: str, body: Callable[..., Any], *arguments: Any) -> Iterator[None]:
    """Make this process rank 0 of `devices`, and run `body(rank, *arguments)` in a process for each other rank.

    The other processes end with the block or with this process. Raises UserError if one of them dies or raises it, and
    RuntimeError for any other error of theirs, with the traceback as its cause.
    """
    context = fork_server(["cifar_lab.training.train"])
    store = dist.TCPStore("127.0.0.1", 0, devices, is_master=True, wait_for_workers=False)
    group = (accelerator, store.port, devices)
    others = [context.Process(target=_other, args=(rank, group, body, arguments)) for rank in range(1, devices)]
    over = Event()
    try:
        with without_main():
            for other in others:
                other.start()
        while not store.check([str(rank) for rank in range(1, devices)]):
            if any(other.exitcode for other in others):
                raise RuntimeError
            time.sleep(POLL_SECONDS)
        Thread(target=_watch, args=(others, store.port, over), daemon=True).start()
        _join(0, store, accelerator, devices)
        yield
    except RuntimeError:  # gloo and NCCL also raise it when another rank has died
        for other in others:
            other.join(END_SECONDS)
        if store.check(["error"]):
            reason, trace = (store.get(key).decode() for key in ("error", "traceback"))
            if trace:
                raise RuntimeError(reason) from RuntimeError(trace)
            raise UserError(reason) from None
        if any(other.exitcode for other in others):
            raise UserError(DIED) from None
        raise
    finally:
        for other in others:
            other.kill()
            other.join()
        if dist.is_initialized():
            dist.destroy_process_group()
        over.set()


def _watch(others: Sequence[BaseProcess], port: int, over: Event) -> None:
    """Exit if another rank has died and this process does not notice: NCCL would wait for ten minutes."""
    store = dist.TCPStore("127.0.0.1", port)  # a second connection, because the first may be blocked by a wait
    while not over.wait(POLL_SECONDS):
        ended = [rank for rank, other in enumerate(others, 1) if wait([other.sentinel], 0)]
        if all(store.check([f"{rank} done"]) for rank in ended) or over.wait(NOTICE_SECONDS):
            continue
        error = (store.get("traceback") or store.get("error")).decode() if store.check(["error"]) else DIED
        print(error, file=sys.stderr, flush=True)
        os._exit(1)


def _other(rank: int, group: tuple[str, int, int], body: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 handles Ctrl-C
    follow_parent()
    accelerator, port, devices = group
    store = dist.TCPStore("127.0.0.1", port, devices)
    store.set(str(rank), "here")
    try:
        _join(rank, store, accelerator, devices)
        body(rank, *arguments)
        store.set(f"{rank} done", "")
    except Exception as error:
        known = isinstance(error, UserError)
        store.set("traceback", "" if known else traceback.format_exc())
        store.set("error", str(error) if known else f"{type(error).__name__}: {error}")
        os._exit(1)


def _join(rank: int, store: dist.Store, accelerator: str, devices: int) -> None:
    try:
        dist.init_process_group("nccl" if accelerator == "cuda" else "gloo", store=store, rank=rank, world_size=devices)
    except RuntimeError as error:
        raise UserError(f"the processes of the run can't reach each other: {first_line(error)}") from None
