"""What a search says of itself while it runs: the hook that takes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

Write = Callable[[str, Mapping[str, Tensor]], None]
"""``write(kind, arrays)``: one entry of a record, its arrays by name. A search that has none (None) records nothing."""
