"""A dataclass of settings becomes a command line."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any


def setting(default: Any, meaning: str, choices: Sequence | None = None) -> Any:
    """A field of a dataclass of settings: its default, what ``--help`` says of it, the values that it may take."""
    return dataclasses.field(default=default, metadata={"help": meaning, "choices": choices})


def parse(
    config: Any, description: str, arguments: Sequence[str] | None = None, program: str | None = None
) -> Any:
    """The settings with what the command line says in place of their defaults.

    Args:
        config: a dataclass, or an instance, whose values are the defaults; or a sequence of them, which share the
            command line.
        description: what ``--help`` opens with.
        arguments: words instead of ``sys.argv[1:]``.
        program: what ``--help`` calls the command; by default the script's name.

    Returns:
        A new instance; for a sequence, a tuple of instances in its order.

    A field ``train_samples: int`` is the option ``--train-samples`` (or ``--train_samples``). ``field(metadata={"help":
    ..., "choices": ...})`` gives its help, and the values that it may take, as a ``Literal`` type does. A bool is
    ``--x`` or ``--no-x``; a tuple takes several values; a field that may be None takes the word ``none`` for it.

    Raises:
        SystemExit: as argparse does, with a message that names the option, for what is unknown or not of its type.
        TypeError: a field's type has no form on a command line, or two dataclasses have a field of one name.
    """
    several = isinstance(config, (list, tuple))
    instances = [entry() if isinstance(entry, type) else entry for entry in (config if several else [config])]
    parser = argparse.ArgumentParser(
        program,
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    owners: dict[str, int] = {}
    for index, instance in enumerate(instances):
        types_of = typing.get_type_hints(type(instance))
        for field in dataclasses.fields(instance):
            if field.name in owners:
                raise TypeError(f"{field.name}: a field of two dataclasses on one command line")
            owners[field.name] = index
            _add_option(parser, field, types_of[field.name], getattr(instance, field.name))
    found = vars(parser.parse_args(arguments))
    parsed = tuple(
        dataclasses.replace(
            instance, **{name: found[name] for name, owner in owners.items() if owner == index}
        )
        for index, instance in enumerate(instances)
    )
    return parsed if several else parsed[0]


def _add_option(
    parser: argparse.ArgumentParser, field: dataclasses.Field, annotation: Any, default: Any
) -> None:
    names = sorted({f"--{field.name.replace('_', '-')}", f"--{field.name}"})
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    text = f"{field.metadata.get('help', '')} (default: {shown})".strip().replace("%", "%%")
    choices = field.metadata.get("choices")
    annotation, optional = _without_none(annotation)
    several = typing.get_origin(annotation) is tuple
    if several:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) is typing.Literal:
        choices = typing.get_args(annotation)
        annotation = type(choices[0])
    if annotation is bool and not optional and not several:
        parser.add_argument(*names, default=default, help=text, action=argparse.BooleanOptionalAction)
        return
    if not isinstance(annotation, type) or annotation is bool:
        raise TypeError(f"{field.name}: no option can be made of the type {annotation}")
    parser.add_argument(
        *names,
        default=default,
        type=_optional(annotation) if optional else annotation,
        choices=choices,
        help=text,
        **({"nargs": "*", "action": _Tuple} if several else {}),
    )


class _Tuple(argparse.Action):
    """Several values are a tuple, as in the dataclass, where argparse gives a list."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, tuple(values))


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [entry for entry in typing.get_args(annotation) if entry is not type(None)]
        if len(rest) == 1:
            return rest[0], True
    return annotation, False


def _optional(kind: type) -> Callable[[str], Any]:
    def convert(word: str) -> Any:
        return None if word.lower() == "none" else kind(word)

    convert.__name__ = kind.__name__  # argparse's message names it
    return convert
