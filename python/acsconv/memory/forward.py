"""What is put in a module's ``forward`` attribute."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn


class Forward:
    """Knows its module without keeping it alive, and goes along where that is copied or pickled."""

    def __init__(self, module: nn.Module) -> None:
        self.module = weakref.ref(module)
        self.before = vars(module).get("forward")  # what was put there before

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "module": self.module()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, module=weakref.ref(state["module"]))
