"""Rules: what torch functions, and a few modules, do on a folded volume. One line registers another.

A function's rule takes its place inside a fold. It is given the :class:`~acsconv.converters.fold.Volume`, the
function, and the call's arguments; ``volume.unfold(tensor, name)`` gives [N, C, D, H, W], ``volume.fold(result)``
goes back:

    >>> @rule(torch.roll)
    ... def roll(volume, function, input, shifts, dims):
    ...     dims = [d % 4 + (d % 4 > 1) for d in dims]  # H and W are one axis further back
    ...     return volume.fold(function(volume.unfold(input, "roll"), shifts, dims))

A module's rule takes the place of ``forward`` of all modules whose class has the given name; classes are named, not
imported, so that no other package has to be there:

    >>> @module_rule("SpaceToDepth")
    ... def space_to_depth(volume, module, forward, input):
    ...     return volume.fold(forward_of_a_volume(volume.unfold(input, "SpaceToDepth")))

Register rules before the conversion. A function's rule runs with all rules off, ``with volume:`` turns them on; a
module's runs with all rules on, ``with volume.off():`` turns them off.
"""

from __future__ import annotations

from collections.abc import Callable

from ..fold import RULES

__all__ = ["MODULE_RULES", "RULES", "find_module_rule", "module_rule", "rule"]

#: What to do in place of a module's ``forward`` inside a fold, by the name of its class; with it, the packages whose
#: classes are meant, or () for all.
MODULE_RULES: dict[str, tuple[Callable, tuple[str, ...]]] = {}


def rule(*functions: Callable) -> Callable[[Callable], Callable]:
    """Registers ``rule(volume, function, *arguments)`` for torch functions; the last registration holds."""

    def register(rule: Callable) -> Callable:
        RULES.update(dict.fromkeys(functions, rule))
        return rule

    return register


def module_rule(*class_names: str, packages: tuple[str, ...] = ()) -> Callable[[Callable], Callable]:
    """Registers ``rule(volume, module, forward, *arguments)`` for modules by the names of their classes.

    ``packages`` limits it to classes that come from one of these packages.
    """

    def register(rule: Callable) -> Callable:
        MODULE_RULES.update(dict.fromkeys(class_names, (rule, packages)))
        return rule

    return register


def find_module_rule(cls: type) -> Callable | None:
    """The rule for modules of a class, if there is one."""
    rule, packages = MODULE_RULES.get(cls.__name__, (None, ()))
    return None if packages and cls.__module__.partition(".")[0] not in packages else rule


from . import convolution, modules, pooling, refused, resampling, shape  # noqa: E402, F401
