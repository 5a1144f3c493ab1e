"""A network in pieces, cut at its attentions, so that a compiler sees one graph for all layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_Three = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]


class Steps:
    """What lies before the first attention, between two, and behind the last; compiled or not."""

    def __init__(
        self,
        project: Callable[..., Any],
        between: Callable[..., Any],
        finish: Callable[..., Any],
    ) -> None:
        """Keep the pieces as they are.

        Args:
            project: Everything before the first attention.
            between: Everything from one attention to the next.
            finish: Everything behind the last attention.
        """
        self._plain: _Three = project, between, finish
        self._compiled: _Three = self._plain

    def compile(self) -> None:
        """Compile the pieces, at their first call, each for the one shape that it is given."""
        project, between, finish = (torch.compile(p, dynamic=False) for p in self._plain)
        self._compiled = project, between, finish

    def choose(self, tokens: int, fill_to: int) -> tuple[_Three, int]:
        """The pieces for a pack, and how many rows it is to be filled up with.

        Args:
            tokens: Those of the pack.
            fill_to: Rows that compiled pieces compute, so that they always see one shape. A longer
                pack, and one of less than half of them, takes the plain pieces.
        """
        if tokens <= fill_to <= 2 * tokens:
            return self._compiled, fill_to - tokens
        return self._plain, 0
