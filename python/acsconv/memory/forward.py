"""What is put in a module's ``forward`` attribute."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import nn


class Forward:
    """Knows its module without keeping it alive, and goes along where that is copied or pickled."""

    def __init__(self, module: nn.Module) -> None:
        self.module = weakref.ref(module)
        self.before = vars(module).get("forward")  # what was put there before

    def plain(self) -> Callable:
        """The forward that the module had before."""
        module = self.module()
        forward = type(module).forward
        if (
            vars(module).get("_acs_forward") is self
        ):  # converted since: the new class's forward calls this one
            forward = forward.__wrapped__
        return self.before or forward.__get__(module)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "module": self.module()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, module=weakref.ref(state["module"]))
