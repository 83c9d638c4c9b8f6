"""The record of the code that trained a run."""

import shutil
import subprocess

import pytest

from cifar_lab.tracking import provenance

NAMES = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
UNKNOWN = {"git_dirty": "unknown", "mlflow.source.git.commit": "unknown"}


def git(folder, *command):
    return subprocess.run(["git", "-C", folder, *command], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    for name, value in NAMES.items():
        monkeypatch.setenv(name, value)
    for folder in (tmp_path / "ours", tmp_path / "other"):
        folder.mkdir()
        git(folder, "init", "-q")
        (folder / "file").write_text("1")
        git(folder, "add", "file")
        git(folder, "commit", "-qm", str(folder))
    monkeypatch.setattr(provenance, "REPOSITORY", (tmp_path / "ours").resolve())
    return tmp_path / "ours"


def test_commit_and_changes_of_the_package_alone(repository, monkeypatch):
    commit = git(repository, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(repository.parent / "other" / ".git"))  # as git sets it for its hooks
    assert provenance._git_tags() == {"git_dirty": "false", "mlflow.source.git.commit": commit}
    (repository / "file").write_text("2")
    assert provenance._git_tags() == {"git_dirty": "true", "mlflow.source.git.commit": commit}


def test_where_git_does_not_tell_nothing_is_claimed(repository, monkeypatch, tmp_path):
    inside = repository / "site-packages"
    inside.mkdir()
    for place in (inside, tmp_path):  # in somebody else's repository; in none
        monkeypatch.setattr(provenance, "REPOSITORY", place.resolve())
        assert provenance._git_tags() == UNKNOWN
    monkeypatch.setattr(provenance, "REPOSITORY", repository.resolve())
    monkeypatch.setenv("PATH", "")
    assert provenance._git_tags() == UNKNOWN


def test_a_change_in_any_folder_of_the_package_changes_the_digest_of_the_code(tmp_path, monkeypatch):
    package = shutil.copytree(provenance.PACKAGE, tmp_path / "cifar_lab", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "PACKAGE", package)
    digests = [provenance.machine_tags("cpu")["code_digest"]]
    folders = [package, *(folder for folder in package.iterdir() if folder.is_dir())]
    for folder in folders:
        file = sorted(folder.glob("[a-z]*.py"))[0]
        file.write_text(file.read_text() + "\n")
        digests.append(provenance.machine_tags("cpu")["code_digest"])
    assert len(set(digests)) == len(folders) + 1 >= 9
