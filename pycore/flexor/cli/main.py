# SPDX-License-Identifier: Apache-2.0
"""Entry point of the `flexor` command; the command itself is in app.py."""

import os
import sys


def main() -> None:
    """Run the command line, or say in one line which package it lacks."""
    if sys.argv[1:2] != ["bench"]:
        # Threads that spin while they wait turn seconds into minutes where others use the cores; read when torch loads.
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    try:
        from .app import app
    except ModuleNotFoundError as error:
        sys.exit(f"flexor: the command line needs the package {error.name}: pip install 'flexor[cli]'")
    app()


if __name__ == "__main__":
    main()
