# SPDX-License-Identifier: Apache-2.0
"""What goes wrong with a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .picture import Picture


class HevcError(ValueError):
    """A source that is not HEVC, or data that are lost and that no picture can carry as its damage.

    `pictures` holds what could be decoded.
    """

    def __init__(self, message: str, pictures: list[Picture] | None = None) -> None:
        super().__init__(message)
        self.pictures: list[Picture] = pictures or []


class HevcUnsupported(NotImplementedError):
    """A stream that may be right but asks for what flexor does not decode: inter pictures, other profiles.

    `pictures` holds the pictures before.
    """

    def __init__(self, message: str, pictures: list[Picture] | None = None) -> None:
        super().__init__(message)
        self.pictures: list[Picture] = pictures or []
