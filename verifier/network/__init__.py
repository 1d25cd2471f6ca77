"""Reading neural networks: ONNX models as computation graphs. Nothing heavy is imported before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verifier.network.reader import Network, read_network
    from verifier.network.summary import summarise

__all__ = ["Network", "read_network", "summarise"]


def __getattr__(name: str) -> Any:
    """Import on first use: ``read_network`` and ``Network`` need torch, ``summarise`` needs onnx only."""
    if name in ("Network", "read_network"):
        from verifier.network import reader

        return getattr(reader, name)
    if name == "summarise":
        from verifier.network import summary

        return summary.summarise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
