"""A tracking server for a team: MLflow's, on PostgreSQL, with artifacts and user accounts."""

import argparse
import os
import secrets
import sys
from pathlib import Path
from typing import NoReturn

import sqlalchemy

from cifar_lab.commands.ui import check_port
from cifar_lab.errors import UserError

FOLDER = Path("server")
DATABASE, PASSWORD = "MLFLOW_BACKEND_STORE_URI", "MLFLOW_AUTH_ADMIN_PASSWORD"
USERS = """\
[mlflow]
default_permission = EDIT
database_uri = {database}
admin_username = admin
auth_cache_ttl_seconds = 60
"""


def run(options: argparse.Namespace) -> NoReturn:
    """Become MLflow's server on the database of MLFLOW_BACKEND_STORE_URI; artifacts go to `server/artifacts`.

    The user accounts are in the same database. The first start creates admin with the password in
    MLFLOW_AUTH_ADMIN_PASSWORD. Raises UserError.
    """
    database = os.environ.get(DATABASE, "")
    if not database.startswith("postgresql"):
        raise UserError(f"set {DATABASE}=postgresql://<user>:<password>@<host>/<database>; docs/server.md makes one")
    host, port = options.host, options.port
    check_port(port, f"make server PORT={port + 1}")
    if not _has_users(database) and not os.environ.get(PASSWORD):
        raise UserError(f"set {PASSWORD} for this first start, to the password that the user admin will have")
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    key, users = FOLDER / "session_key", FOLDER / "auth.ini"
    if not key.exists():
        _write_private(key, secrets.token_hex(32))
    _write_private(users, USERS.format(database=database.replace("%", "%%")))
    os.environ |= {
        "MLFLOW_AUTH_CONFIG_PATH": str(users.resolve()),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": key.read_text(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    artifacts = ["--serve-artifacts", "--artifacts-destination", str((FOLDER / "artifacts").resolve())]
    command = ["-m", "mlflow", "server", "--app-name", "basic-auth", "--host", host, "--port", str(port), *artifacts]
    os.execv(sys.executable, [sys.executable, *command])


def _has_users(database: str) -> bool:
    """Whether the database has user accounts. Raises UserError if it does not answer."""
    try:
        engine = sqlalchemy.create_engine(database)
        with engine.connect() as connection:
            if not sqlalchemy.inspect(connection).has_table("users"):
                return False
            return connection.execute(sqlalchemy.text("SELECT count(*) FROM users")).scalar_one() > 0
    except (sqlalchemy.exc.SQLAlchemyError, ValueError) as error:  # ValueError: the port is not a number
        cause = getattr(error, "orig", None) or error
        raise UserError(f"{DATABASE}: {' '.join(str(cause).split())}") from None


def _write_private(file: Path, text: str) -> None:
    file.touch(mode=0o600)
    file.write_text(text)
