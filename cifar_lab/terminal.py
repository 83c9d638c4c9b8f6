"""Where the program writes: on a terminal, into a file, into a notebook."""

from typing import Any

from rich.console import Console


def make_console(**options: Any) -> Console:
    """Rich's console; in a notebook it writes plain lines, as into a file."""
    console = Console(**options)
    return Console(**options, force_jupyter=False, force_terminal=False) if console.is_jupyter else console
