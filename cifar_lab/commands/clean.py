"""Delete for good what deleted runs left: their files and rows, checkpoints that nobody can continue, locks."""

import argparse
import sys
from collections.abc import Sequence

from mlflow.tracking import MlflowClient

from cifar_lab.errors import UsageError, UserError
from cifar_lab.files import readable_size
from cifar_lab.tracking import places, store
from cifar_lab.tracking.cleaning import Piece, delete, find_garbage

NOTHING = "nothing to clean"


def run(options: argparse.Namespace) -> int:
    """List, ask, delete; 1 if something could not be deleted. Raises UserError; UsageError if nobody can be asked."""
    if places.is_local() and not places.database().exists():
        print(f"{NOTHING}: no {places.database().name} here")
        return 0
    client = store.connect()
    found = find_garbage(client)
    for line in found.kept:
        print(f"kept: {line}")
    if not found.pieces:
        print(NOTHING)
        return 0
    for piece in found.pieces:
        print(f"{readable_size(piece.size):>9}  {piece.name}")
    print(f"{readable_size(sum(piece.size for piece in found.pieces)):>9}  in all, to be deleted for good")
    if not (options.yes or _agreed()):
        print("nothing was deleted")
        return 0
    try:
        return _delete(client, found.pieces)
    except KeyboardInterrupt:
        print("interrupted; the same command deletes the rest")
        raise


def _agreed() -> bool:
    if not (sys.stdin and sys.stdin.isatty()):
        raise UsageError("nothing was deleted: there is no terminal to ask on; confirm with --yes (make clean YES=1)")
    try:
        return input("delete? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


def _delete(client: MlflowClient, listed: Sequence[Piece]) -> int:
    """Delete those of the listed pieces that can still go: runs may have been restored or started since."""
    names, freed, failed = {piece.name for piece in listed}, 0, 0
    for piece in find_garbage(client).pieces:
        if piece.name in names:
            try:
                delete(client, piece)
                freed += piece.size
            except (UserError, OSError) as error:
                print(f"not deleted: {store.explain(error) or error}", file=sys.stderr)
                failed += 1
    print(f"{readable_size(freed)} freed" + (f"; {failed} of {len(listed)} could not be deleted" if failed else ""))
    return 1 if failed else 0
