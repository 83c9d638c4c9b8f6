import _thread
import http.server
import re
import socket
import threading
import time
from dataclasses import replace

import pytest
from packing import leftovers, noise, write_official

from cifar_lab.data import download
from cifar_lab.data.cache import load_dataset
from cifar_lab.data.catalogue import CIFAR10, CIFAR100, ENTRIES
from cifar_lab.errors import DataError

pytestmark = pytest.mark.usefixtures("workplace")
MIRROR = "http://127.0.0.1:{}/cifar-10-python.tar.gz"


@pytest.fixture
def official(tmp_path, monkeypatch):
    """The bytes of an official archive of 500 + 10 images, 1.6 MB."""
    monkeypatch.setattr(download, "RACE", 0.3)
    images, labels = {"train": noise(500), "test": noise(10)}, {"train": [*range(10)] * 50, "test": [*range(10)]}
    return write_official(tmp_path / "source", monkeypatch, "cifar10", images, labels).read_bytes()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the options of its server say."""

    def do_GET(self):
        server, content, start = self.server, self.server.content, 0
        server.asked.append(self.headers.get("Range"))
        if server.answer != 200:
            self.send_response(server.answer)
            self.send_header("Location", server.location)
            self.end_headers()
            return
        if server.ranges and (found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            start = int(found.group(1))
        self.send_response(206 if server.ranges else 200)
        self.send_header("Content-Length", str(len(content) - start + server.lie))
        self.end_headers()
        end = min(len(content), start + server.cut) if server.cut else len(content)
        try:
            for place in range(start, end, server.piece):
                self.wfile.write(content[place : min(end, place + server.piece)])
                time.sleep(server.pause)
        except OSError:  # the other side had enough
            pass

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """Starts servers; gives the address of one, and the server."""
    servers = []

    def start(content=b"", answer=200, ranges=True, lie=0, cut=0, piece=1 << 20, pause=0, location=""):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        options = {"answer": answer, "ranges": ranges, "lie": lie, "cut": cut, "piece": piece, "pause": pause}
        vars(server).update(options, content=content, location=location, asked=[])
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return MIRROR.format(server.server_address[1]), server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def use(monkeypatch, *sources):
    monkeypatch.setitem(ENTRIES, "cifar10", replace(ENTRIES["cifar10"], sources=sources))


def downloaded(workplace, official):
    assert load_dataset("cifar10")[0].title == "CIFAR-10 (original pixels)"
    assert [path.name for path in (workplace / "data").glob("cifar*")] == [CIFAR10.archive]
    return (workplace / "data" / CIFAR10.archive).read_bytes() == official


@pytest.mark.parametrize("ranges", [True, False])
def test_it_is_verified_and_kept(official, workplace, monkeypatch, serve, ranges):
    address, server = serve(official, ranges=ranges)
    use(monkeypatch, address)
    assert downloaded(workplace, official)
    assert load_dataset("cifar10")[0].name == "cifar10"
    assert len(server.asked) == 1


def test_the_fastest_source_goes_on(official, workplace, monkeypatch, serve):
    slow, _ = serve(official, piece=1000, pause=0.02)  # 50 kB/s
    fast, server = serve(official, piece=100_000, pause=0.02)
    dead = socket.create_server(("127.0.0.1", 0))  # takes a call, says nothing
    use(monkeypatch, slow, MIRROR.format(dead.getsockname()[1]), "http://nowhere.invalid/", fast)
    started = time.monotonic()
    assert downloaded(workplace, official)
    assert time.monotonic() - started < 5
    assert server.asked == ["bytes=0-"]


def test_it_goes_on_where_it_broke_off(official, workplace, monkeypatch, serve):
    cuts, server = serve(official, cut=600_000)
    use(monkeypatch, cuts)
    assert downloaded(workplace, official)
    starts = [int(asked.strip("bytes=-")) for asked in server.asked]
    assert starts == sorted(starts)
    assert len(starts) == 3
    assert starts[1] >= 500_000


def test_a_part_is_told_and_completed_at_the_next_start(official, workplace, monkeypatch, serve, capsys):
    part = workplace / "data" / f"{CIFAR10.archive}.part"
    part.parent.mkdir()
    part.write_bytes(official[:1_000_000])
    with pytest.raises(DataError, match=r"failed after 1.0 MB, which are kept in data/cifar-10-python.tar.gz.part"):
        load_dataset("cifar10")
    for ranges, expected in (True, "bytes=1000000-"), (False, "bytes=1000000-"):
        address, server = serve(official, ranges=ranges)
        use(monkeypatch, address)
        assert downloaded(workplace, official)
        assert server.asked == [expected]
        (workplace / "data" / CIFAR10.archive).unlink()
        part.write_bytes(official[:1_000_000])
    assert re.search(r"1\.0 of 1\.\d MB were there already, in data/", capsys.readouterr().err)


def test_ctrl_c_keeps_what_is_there(official, workplace, monkeypatch, serve, capsys):
    slow, server = serve(official, piece=50_000, pause=0.05)
    use(monkeypatch, slow)
    threading.Timer(0.8, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        load_dataset("cifar10")
    part = workplace / "data" / f"{CIFAR10.archive}.part"
    kept = part.stat().st_size
    assert 0 < kept < len(official)
    assert official.startswith(part.read_bytes())
    assert f"{kept / 1e6:.1f} MB are kept in data/" in " ".join(capsys.readouterr().err.split())
    server.pause = 0
    assert downloaded(workplace, official)
    assert server.asked == ["bytes=0-", f"bytes={kept}-"]


def test_a_wrong_file_costs_its_source_the_trust(official, workplace, monkeypatch, serve, capsys):
    wrong, _ = serve(bytes(len(official)))
    right, server = serve(official, piece=100_000, pause=0.1)
    use(monkeypatch, wrong)
    with pytest.raises(DataError, match=r"what 127.0.0.1:\d+ gave is not the official file \(its MD5 is not"):
        load_dataset("cifar10")
    assert not list((workplace / "data").glob("cifar*"))
    use(monkeypatch, wrong, right)
    assert downloaded(workplace, official)
    assert "is not the official file; trying the other sources" in capsys.readouterr().err
    assert server.asked == ["bytes=0-", "bytes=0-"]


def test_a_part_of_another_file_is_thrown_away(official, workplace, monkeypatch, serve, capsys):
    address, server = serve(official)
    use(monkeypatch, address)
    for wrong in b"x" * 1000, b"x" * (len(official) + 1):
        (workplace / "data").mkdir(exist_ok=True)
        (workplace / "data" / f"{CIFAR10.archive}.part").write_bytes(wrong)
        assert downloaded(workplace, official)
        assert "was not the beginning of the official file; fetching it anew" in capsys.readouterr().err
        (workplace / "data" / CIFAR10.archive).unlink()
    assert server.asked == ["bytes=1000-", "bytes=0-", "bytes=0-"]


@pytest.mark.parametrize("lie", [-1000, 1000])
def test_a_source_that_tells_another_size_is_left_out(official, workplace, monkeypatch, serve, lie):
    liar, _ = serve(official, lie=lie)
    use(monkeypatch, liar)
    with pytest.raises(DataError, match=r"it has another file, of [\d,]+ bytes"):
        load_dataset("cifar10")
    honest, _ = serve(official)
    use(monkeypatch, liar, honest)
    assert downloaded(workplace, official)


def test_redirects_and_proxies_are_followed(official, workplace, monkeypatch, serve):
    address, server = serve(official)
    moved, _ = serve(answer=302, location=address)
    use(monkeypatch, moved)
    assert downloaded(workplace, official)
    (workplace / "data" / CIFAR10.archive).unlink()
    use(monkeypatch, "http://mirror.invalid/x")
    monkeypatch.setenv("http_proxy", address.rpartition("/")[0])
    assert downloaded(workplace, official)
    assert len(server.asked) == 2


def test_ways_round_a_slow_download_are_told_once(official, workplace, monkeypatch, serve, capsys):
    monkeypatch.setattr(download, "PATIENCE", 0.1)
    slow, _ = serve(official, piece=200_000, pause=0.1)
    use(monkeypatch, slow)
    assert downloaded(workplace, official)
    told = "too slow? --data-dir takes CIFAR-10 from any place, for instance https://www.kaggle.com/"
    assert capsys.readouterr().err.count(told) == 1


@pytest.mark.parametrize("trouble", ["refused", "no such host", "silent", "breaks off", "not found"])
def test_without_network_digits_stand_in_for_cifar10_where_that_is_allowed(workplace, monkeypatch, serve, trouble):
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    monkeypatch.setattr(download, "RACE", 0.3)
    silent = socket.create_server(("127.0.0.1", 0))
    source = {
        "refused": "http://127.0.0.1:1/",
        "no such host": "http://nowhere.invalid/",
        "silent": MIRROR.format(silent.getsockname()[1]),
        "breaks off": serve(bytes(CIFAR10.size // 1000), lie=CIFAR10.size - CIFAR10.size // 1000, ranges=False)[0],
        "not found": serve(answer=404)[0],
    }[trouble]
    for entry in CIFAR10, CIFAR100:
        monkeypatch.setitem(ENTRIES, entry.name, replace(entry, sources=(source,)))
    started = time.monotonic()
    for entry in CIFAR10, CIFAR100:
        expected = rf"{entry.title} is not in data/ or ../shared/data/ and the download failed.*; put it there or give"
        with pytest.raises(DataError, match=expected):
            load_dataset(entry.name)
    assert time.monotonic() - started < 10
    dataset, fallback_reason = load_dataset("auto")
    assert (dataset.name, len(dataset.labels["train"]), len(dataset.labels["test"])) == ("digits", 1437, 360)
    assert "download" in fallback_reason
    assert not leftovers(workplace)
