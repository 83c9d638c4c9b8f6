"""Worker processes on unusual machines."""

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest

from cifar_lab.execution.local import Pool

CODE = """
from cifar_lab.processes import fork_server
process = fork_server([]).Process(target=print, args=("started",))
if __name__ == "__main__":
    process.start()
    process.join()
"""


def test_a_temporary_folder_with_a_long_path_is_no_hindrance(tmp_path):
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    (tmp_path / "code.py").write_text(CODE)
    command = [sys.executable, str(tmp_path / "code.py")]
    done = subprocess.run(command, env={**os.environ, "TMPDIR": str(folder)}, text=True, capture_output=True)
    assert (done.stdout, done.stderr) == ("started\n", "")
    assert not any(folder.iterdir())


def test_warnings_as_errors_end_no_command(workplace):
    command = [sys.executable, "-m", "cifar_lab", "best"]
    done = subprocess.run(command, env={**os.environ, "PYTHONWARNINGS": "error"}, text=True, capture_output=True)
    assert done.stderr == "cifar_lab: no mlflow.db here; run make experiment first\n"


def test_a_fork_server_that_is_gone_is_as_a_worker_that_died(monkeypatch):
    def submit(*_):
        raise EOFError

    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit)
    with (
        pytest.raises(BrokenProcessPool, match="no worker process could be started"),
        Pool("cpu", 1).open(1, 1, 1) as call,
    ):
        call(print)
