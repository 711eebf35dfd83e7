# SPDX-License-Identifier: Apache-2.0
"""`HashTable`: spconv's dictionary of 32- or 64-bit keys, whole tensors at a time."""

from __future__ import annotations

import torch
from torch import Tensor

_KEYS = (torch.int32, torch.int64)
_VALUES = (torch.int32, torch.int64, torch.float32, torch.float64)


class HashTable:
    """Values under integer keys; it grows as needed and keeps its keys sorted, which is the order of `items`.

    Args:
        device: where keys and values are.
        key_dtype: int32 or int64.
        value_dtype: int32, int64, float32 or float64.
        max_size: accepted and not used.

    Raises:
        TypeError: other dtypes.

    Source:
        spconv.pytorch.hash.HashTable 2.3.8, which on a CPU raises.
    """

    def __init__(
        self, device: torch.device, key_dtype: torch.dtype, value_dtype: torch.dtype, max_size: int = -1
    ) -> None:
        for name, dtype, allowed in (("key_dtype", key_dtype, _KEYS), ("value_dtype", value_dtype, _VALUES)):
            if dtype not in allowed:
                raise TypeError(f"HashTable: {name} must be one of {', '.join(map(str, allowed))}, got {dtype}")
        self.key_dtype, self.value_dtype = key_dtype, value_dtype
        self._keys = torch.empty(0, dtype=key_dtype, device=device)
        self._values = torch.empty(0, dtype=value_dtype, device=device)

    def insert(self, keys: Tensor, values: Tensor | None = None) -> None:
        """Sets values under keys, the last where a key comes twice; without values they are 0 until set."""
        keys = self._checked("insert", "keys", keys, self.key_dtype)
        if values is None:
            values = torch.zeros(len(keys), dtype=self.value_dtype, device=keys.device)
        values = self._checked("insert", "values", values, self.value_dtype, len(keys))
        keys, order = torch.cat([self._keys, keys]).sort(stable=True)
        last = torch.ones_like(keys, dtype=torch.bool)
        last[:-1] = keys[1:] != keys[:-1]
        self._keys, self._values = keys[last], torch.cat([self._values, values])[order[last]]

    def query(self, keys: Tensor, values: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Values under keys, and a mask of the keys that are not there; their values stay as given, or are 0."""
        keys = self._checked("query", "keys", keys, self.key_dtype)
        if values is None:
            values = torch.zeros(len(keys), dtype=self.value_dtype, device=keys.device)
        places, missing = self._find(keys)
        values[~missing] = self._values[places[~missing]]
        return values, missing

    def insert_exist_keys(self, keys: Tensor, values: Tensor) -> Tensor:
        """Sets values under those keys that are there; a uint8 mask of the others."""
        keys = self._checked("insert_exist_keys", "keys", keys, self.key_dtype)
        values = self._checked("insert_exist_keys", "values", values, self.value_dtype, len(keys))
        places, missing = self._find(keys)
        self._values[places[~missing]] = values[~missing]
        return missing.to(torch.uint8)

    def assign_arange_(self) -> Tensor:
        """Numbers the keys from 0 in the order of `items`; how many there are, (1,) int64."""
        self._values = torch.arange(len(self._keys), dtype=self.value_dtype, device=self._keys.device)
        return torch.tensor([len(self._keys)])

    def items(self, max_size: int = -1) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and their values, and how many, (1,) int64; at most max_size where that is not negative."""
        count = len(self._keys) if max_size < 0 else min(max_size, len(self._keys))
        return self._keys[:count].clone(), self._values[:count].clone(), torch.tensor([count])

    def _find(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        if not len(self._keys):
            return torch.zeros_like(keys, dtype=torch.int64), torch.ones_like(keys, dtype=torch.bool)
        places = torch.searchsorted(self._keys, keys).clamp(max=len(self._keys) - 1)
        return places, self._keys[places] != keys

    @staticmethod
    def _checked(method: str, name: str, value: Tensor, dtype: torch.dtype, count: int | None = None) -> Tensor:
        if value.dtype != dtype:
            raise TypeError(f"HashTable.{method}: {name} must be {dtype}, got {value.dtype}")
        if value.dim() != 1 or (count is not None and len(value) != count):
            expected = "(N,)" if count is None else (count,)
            raise ValueError(f"HashTable.{method}: {name} must have shape {expected}, got {tuple(value.shape)}")
        return value
