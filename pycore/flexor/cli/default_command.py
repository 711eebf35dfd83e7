# SPDX-License-Identifier: Apache-2.0
"""A group of commands of which the first stands in where none is named."""

from typing import Any

from typer.core import TyperGroup


class DefaultCommand(TyperGroup):
    """`flexor voxels SCAN` is `flexor voxels show SCAN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)
