# SPDX-License-Identifier: Apache-2.0
"""How a command ends that cannot do what it was asked."""

from typing import NoReturn

import typer


def fail(message: str) -> NoReturn:
    """One line on stderr, and exit code 2."""
    typer.echo(f"flexor: {message}", err=True)
    raise typer.Exit(2)
