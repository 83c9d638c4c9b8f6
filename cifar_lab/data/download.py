"""The download of an official archive: from the fastest of several sources, continued after a break, then verified."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import requests
import rich.progress as bars
from filelock import FileLock
from urllib3.exceptions import HTTPError

from cifar_lab.data.catalogue import Entry
from cifar_lab.data.sources import DATA
from cifar_lab.errors import DataError, Unreachable
from cifar_lab.files import file_digest
from cifar_lab.terminal import make_console

PIECE = 1 << 16
TIMEOUT = 10  # seconds without an answer, or without a byte
RACE = 5  # seconds in which all sources are tried
ENOUGH = 1 << 20  # bytes of a source that broke off, not to wait for the others
ATTEMPTS = 3  # in a row that bring nothing
PATIENCE = 10  # seconds, then the ways round a slow download are told
TROUBLE = (requests.RequestException, HTTPError, OSError)


def download(entry: Entry) -> Path:
    """Fetch the official archive into data/, or the rest of it. Raises Unreachable, or DataError for another file."""
    archive, part = DATA / entry.archive, DATA / f"{entry.archive}.part"
    DATA.mkdir(exist_ok=True)
    with FileLock(DATA / ".lock"):
        sources = list(entry.sources)
        while not archive.exists():  # else another process was here meanwhile
            before, used = part.exists(), set[str]()
            _fetch(entry, sources, part, used)
            if file_digest(part, "md5") == entry.md5:
                part.replace(archive)
                break
            part.unlink()
            if before:  # whose bytes were wrong can't be told
                print(f"{part} was not the beginning of the official file; fetching it anew", file=sys.stderr)
                continue
            sources = [source for source in sources if source not in used]
            hosts = ", ".join(sorted(map(_host, used)))
            if not sources:
                raise DataError(f"what {hosts} gave is not the official file (its MD5 is not {entry.md5})")
            print(f"what {hosts} gave is not the official file; trying the other sources", file=sys.stderr)
    return archive


def _host(source: str) -> str:
    return urlsplit(source).netloc


def _fetch(entry: Entry, sources: list[str], part: Path, used: set[str]) -> None:
    """Fill the file `part`, which stays if that fails or is interrupted; adds to `used` whose bytes it has."""
    failures, start = 0, _size(part)
    so_far = start
    with _bar() as bar:
        task = bar.add_task(f"downloading {entry.archive}", total=entry.size, completed=so_far)
        if so_far:
            bar.print(f"{so_far / 1e6:.1f} of {entry.size / 1e6:.1f} MB were there already, in {part}")
        told = threading.Timer(PATIENCE, _tell_ways, [bar, entry])
        told.daemon = True
        told.start()
        try:
            while so_far < entry.size:
                reason = _continue(entry, sources, part, used, lambda size: bar.update(task, completed=size))
                failures = 0 if _size(part) > so_far else failures + 1
                so_far = _size(part)
                if failures == (ATTEMPTS if so_far > start else 1):  # where nobody answers, nobody will in a second
                    kept = f" after {so_far / 1e6:.1f} MB, which are kept in {part}" if so_far else ""
                    raise Unreachable(f"the download failed{kept} ({reason})")
        except KeyboardInterrupt:
            bar.print(f"{_size(part) / 1e6:.1f} MB are kept in {part}; the same command goes on from there")
            raise
        finally:
            told.cancel()


def _bar() -> bars.Progress:
    columns = bars.TextColumn("{task.description}"), bars.BarColumn(20), bars.DownloadColumn()
    left = bars.TransferSpeedColumn(), bars.TimeRemainingColumn()
    return bars.Progress(*columns, *left, console=make_console(stderr=True, highlight=False))


def _tell_ways(bar: bars.Progress, entry: Entry) -> None:
    bar.print(f"too slow? --data-dir takes {entry.title} from any place, for instance {entry.page}", soft_wrap=True)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _continue(entry: Entry, sources: list[str], part: Path, used: set[str], show: Callable[[int], None]) -> str:
    """Append what the fastest source gives, until it ends; says why it ended too early."""
    start = _size(part)
    runners = [_Runner(source, start, entry.size) for source in sources]
    began = time.monotonic()
    while any(runner.is_alive() for runner in runners):
        best, seconds = max(runners, key=lambda runner: runner.size), time.monotonic() - began
        show(start + best.size)
        ended = best.size >= ENOUGH and not best.is_alive()
        if start + best.size >= entry.size or ended or (seconds > RACE and best.size) or seconds > 2 * TIMEOUT:
            break
        time.sleep(0.05)
    for runner in runners:
        runner.over.set()
    best = max(runners, key=lambda runner: runner.size)
    if best.size:
        best.join()
        used.add(best.source)
        with part.open("ab") as file:
            for piece in best.all():
                file.write(piece)
                show(file.tell())
        return f"{_host(best.source)}: {best.trouble or 'it ended too early'}"
    reasons: dict[str, list[str]] = {}
    for runner in runners:
        reasons.setdefault(runner.trouble or "no answer", []).append(_host(runner.source))
    return "; ".join(f"{', '.join(hosts)}: {reason}" for reason, hosts in reasons.items())


class _Runner(threading.Thread):
    """One source in the race: keeps the bytes that it gets until `over` is set; `all` gives them, then the rest.

    trouble: why it ended too early.
    """

    def __init__(self, source: str, start: int, size: int) -> None:
        super().__init__(daemon=True)
        self.source, self.start_at, self.total = source, start, size
        self.pieces: list[bytes] = []
        self.size, self.trouble, self.over = 0, "", threading.Event()
        self.stream = self._stream()
        self.start()

    def run(self) -> None:
        for piece in self.stream:
            self.pieces.append(piece)
            self.size += len(piece)
            if self.over.is_set():
                break

    def all(self) -> Iterator[bytes]:
        yield from self.pieces
        yield from self.stream

    def _stream(self) -> Iterator[bytes]:
        """The bytes from `start_at` on, as the server has them."""
        wanted = {"Range": f"bytes={self.start_at}-", "Accept-Encoding": "identity"}
        try:
            with requests.get(self.source, headers=wanted, stream=True, timeout=TIMEOUT) as response:
                response.raise_for_status()
                ranged = response.status_code == requests.codes.partial
                length = int(response.headers.get("Content-Length", -1))
                skip = 0 if ranged else self.start_at  # without Range a server begins anew
                if length != self.total - self.start_at + skip:
                    self.trouble = f"it has another file, of {length:,} bytes"
                    return
                left = self.total - self.start_at
                while left and (piece := response.raw.read(PIECE, decode_content=False)):
                    skipped = min(skip, len(piece))
                    skip -= skipped
                    if piece := piece[skipped:]:
                        left -= len(piece)
                        yield piece
        except TROUBLE as error:
            self.trouble = _explain(error)


def _explain(error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"{response.status_code} {response.reason}"
    first: BaseException = error
    while deeper := first.__cause__ or first.__context__:
        first = deeper
    return (getattr(first, "strerror", None) or str(first) or type(first).__name__).partition("\n")[0]
