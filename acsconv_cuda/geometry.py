"""From a layer's parameters to the positions that it reads: the three views and the one rule for all their axes.

Everything below this module (the reference, the fused kernels, the fake kernels) knows only :class:`Geometry`:

    read position on `axis` = o * stride[axis] + origin[view][axis] + tap * dilation[view][axis]

with ``o`` the output position. On the two axes of a view's plane ``origin`` is minus the padding; on its thin axis,
where the kernel has the single tap 0, it is the offset of the thin position. A position outside the volume reads
zero. ``csrc/problem.h`` and ``csrc/view.h`` are the C++ twins.

Axes of a volume are numbered 0 = D, 1 = H, 2 = W throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from operator import index
from typing import NamedTuple

import torch

AXES = ("D", "H", "W")

#: An int for every axis, a triple per volume axis (D, H, W), or a pair per kernel axis (K_h, K_w).
IntOrTuple = int | Sequence[int]


class View(NamedTuple):
    """One of the three orientations: K_h runs along ``row``, K_w along ``column``; ``thin`` is left alone."""

    name: str
    thin: int
    row: int
    column: int

    def kernel3d(self, kernel: tuple[int, int]) -> tuple[int, int, int]:
        """The 2D kernel's extents (K_h, K_w) as the extents (D, H, W) of the same kernel in the volume."""
        extents = [1, 1, 1]
        extents[self.row], extents[self.column] = kernel
        return tuple(extents)


VIEWS = (View("axial", 0, 1, 2), View("coronal", 1, 0, 2), View("sagittal", 2, 0, 1))


class Geometry(NamedTuple):
    """Which positions an ACS convolution reads; independent of channels and of the size of the volume."""

    kernel: tuple[int, int]  # (K_h, K_w)
    stride: tuple[int, int, int]  # per volume axis
    origin: tuple[tuple[int, int, int], ...]  # [view][axis]
    dilation: tuple[tuple[int, int, int], ...]  # [view][axis]; 1 on the thin axis
    shrink: tuple[int, int, int]  # per volume axis: what a stride-1 output is shorter than the input

    def output_size(self, size: Sequence[int]) -> tuple[int, int, int]:
        """Output size (D', H', W') of a volume of ``size`` (D, H, W): that of ``nn.Conv3d`` with the cubic kernel."""
        (depth, height, width), (d, h, w), (sd, sh, sw) = size, self.shrink, self.stride
        return (depth - d - 1) // sd + 1, (height - h - 1) // sh + 1, (width - w - 1) // sw + 1

    def is_one_view(self) -> bool:
        """Whether the three views are one and the same convolution, as they are for a 1x1 kernel."""
        return self.kernel == (1, 1) and len(set(self.origin)) == 1

    def flat_origin(self) -> tuple[int, ...]:
        """``origin`` as the nine numbers, view by view, that the operators take."""
        axial, coronal, sagittal = self.origin
        return axial + coronal + sagittal

    def flat_dilation(self) -> tuple[int, ...]:
        """``dilation`` as the nine numbers, view by view, that the operators take."""
        axial, coronal, sagittal = self.dilation
        return axial + coronal + sagittal

    def on_padded(self, begin: Sequence[int], end: Sequence[int]) -> Geometry:
        """The same positions, for a volume that already carries ``begin`` and ``end`` voxels of padding per axis."""
        origin = tuple(tuple(o + b for o, b in zip(view, begin)) for view in self.origin)
        shrink = tuple(s + b + e for s, b, e in zip(self.shrink, begin, end))
        return self._replace(origin=origin, shrink=shrink)

    def padding_needed(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """The padding per axis, (begin, end), within which every view finds all that its layer's padding promises."""
        begin = tuple(max(0, *(-self.origin[v][axis] for v in range(3) if v != axis)) for axis in range(3))
        reach = [
            [
                self.dilation[v][axis] * (view.kernel3d(self.kernel)[axis] - 1) + self.origin[v][axis]
                for v, view in enumerate(VIEWS)
                if view.thin != axis
            ]
            for axis in range(3)
        ]
        end = tuple(max(0, *(r - shrink for r in views)) for views, shrink in zip(reach, self.shrink))
        return begin, end


class TransposedGeometry(NamedTuple):
    """Where a transposed ACS convolution writes; independent of channels and of the size of the volume.

    On the axes of a view's plane as ``conv_transpose2d``; along its thin axis output position ``o`` takes the input's
    ``clamp((o + shift) // stride, 0, size - 1)``.
    """

    kernel: tuple[int, int]  # (K_h, K_w)
    stride: tuple[int, int, int]  # per volume axis
    padding: tuple[tuple[int, int, int], ...]  # [view][axis]; 0 on the thin axis
    dilation: tuple[tuple[int, int, int], ...]  # [view][axis]; 1 on the thin axis
    output_padding: tuple[int, int, int]  # per volume axis
    grow: tuple[int, int, int]  # per volume axis: the output size of a single voxel
    shift: tuple[int, int, int]  # per volume axis

    def output_size(self, size: Sequence[int]) -> tuple[int, int, int]:
        """Output size (D', H', W') of a volume of ``size`` (D, H, W): that of ``nn.ConvTranspose3d``."""
        return tuple((s - 1) * stride + grow for s, stride, grow in zip(size, self.stride, self.grow))

    def is_one_view(self) -> bool:
        """Whether the three views are one and the same convolution, as they are for a plain 1x1 kernel."""
        return self.kernel == (1, 1) and self.stride == self.grow == (1, 1, 1) and self.shift == (0, 0, 0)


def default_split(out_channels: int) -> tuple[int, int, int]:
    """A third of the output channels for each view; the remainder goes to the axial view first, then the coronal.

    >>> default_split(64)
    (22, 21, 21)
    """
    share, rest = out_channels // 3, out_channels % 3  # not divmod: the number may be symbolic
    return share + (rest > 0), share + (rest > 1), share


def check_split(split: Sequence[int] | None, out_channels: int, name: str = "split") -> tuple[int, int, int]:
    """``split`` as three non-negative ints that add up to ``out_channels``; None gives :func:`default_split`.

    Raises:
        TypeError: not a sequence of ints.
        ValueError: not three of them, a negative one, or another sum.
    """
    if split is None:
        return default_split(out_channels)
    values = as_ints(split, name)
    if isinstance(values, int) or len(values) != 3:
        raise ValueError(f"{name}: expected three sizes (axial, coronal, sagittal), got {split!r}")
    if any(v < 0 for v in values):
        raise ValueError(f"{name}: expected sizes of 0 or more, got {tuple(values)}")
    if sum(values) != out_channels:
        raise ValueError(
            f"{name}: {tuple(values)} adds up to {sum(values)}, but out_channels is {out_channels}"
        )
    return tuple(values)


def resolve(
    kernel: Sequence[int], stride: IntOrTuple, padding: IntOrTuple | str, dilation: IntOrTuple
) -> Geometry:
    """The geometry of a layer, with the rule for the thin axis applied.

    Args:
        kernel: (K_h, K_w).
        stride: an int, or one per volume axis (D, H, W).
        padding: an int, one per volume axis, a pair (p_h, p_w) that belongs to the kernel's axes in every view,
            ``'same'`` (stride 1 only) or ``'valid'``.
        dilation: an int, one per volume axis, or a pair (dil_h, dil_w) like ``padding``.

    On the thin axis, with ``e = dil * (K - 1) - 2 * pad`` there, output position ``o`` reads ``o * stride`` where ``e``
    is 0, or 1 at stride 2; otherwise ``o * stride - pad + dil * (K // 2)``. The rule looks at the layer's parameters
    alone, never at the size of the input.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument of another length or out of range, or views whose output sizes would differ.
    """
    # torch.compile traces through an lru_cache only with a warning, and has no use for one.
    rule = _resolve.__wrapped__ if torch.compiler.is_compiling() else _resolve
    return rule(
        as_ints(kernel, "kernel_size"),
        as_ints(stride, "stride"),
        padding if isinstance(padding, str) else as_ints(padding, "padding"),
        as_ints(dilation, "dilation"),
    )


@lru_cache(maxsize=1024)
def _resolve(kernel, stride, padding, dilation) -> Geometry:
    kernel_h, kernel_w = _checked(kernel, "kernel_size", (2,), 1)
    stride = _checked(stride, "stride", (3,), 1)
    dilations = _per_view(dilation, "dilation", 1)
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f"padding: expected ints, 'same' or 'valid', got {padding!r}")
        if padding == "same" and stride != (1, 1, 1):
            raise ValueError(f"padding: 'same' needs stride 1, got stride {stride}")
    same = padding == "same"
    paddings = _per_view(0 if isinstance(padding, str) else padding, "padding", 0)

    origin = [[0, 0, 0] for _ in VIEWS]
    shrinks: list[dict[str, int]] = [
        {},
        {},
        {},
    ]  # per axis: what each view that has it in its plane takes away
    for v, view in enumerate(VIEWS):
        for axis, taps in ((view.row, kernel_h), (view.column, kernel_w)):
            total = dilations[v][axis] * (taps - 1)
            origin[v][axis] = -(total // 2 if same else paddings[v][axis])
            shrinks[axis][view.name] = 0 if same else total - 2 * paddings[v][axis]
    for axis, by_view in enumerate(shrinks):
        if len(set(by_view.values())) != 1:
            raise ValueError(
                f"padding: the views would differ in output size along {AXES[axis]}: dilation * (K - 1) - 2 * padding "
                f"must be one number there, but with kernel ({kernel_h}, {kernel_w}), dilation {dilation} and padding "
                f"{padding} it is " + ", ".join(f"{value} ({name})" for name, value in by_view.items())
            )
    shrink = tuple(next(iter(by_view.values())) for by_view in shrinks)

    for v, view in enumerate(VIEWS):
        thin = view.thin
        if shrink[thin] != 0 and not (shrink[thin] == 1 and stride[thin] == 2):
            origin[v][thin] = dilations[v][thin] * (kernel_h // 2) - paddings[v][thin]
        dilations[v][thin] = 1
    return Geometry(
        (kernel_h, kernel_w), stride, tuple(map(tuple, origin)), tuple(map(tuple, dilations)), shrink
    )


def resolve_transposed(
    kernel: Sequence[int],
    stride: IntOrTuple,
    padding: IntOrTuple,
    output_padding: IntOrTuple,
    dilation: IntOrTuple,
) -> TransposedGeometry:
    """The geometry of a transposed layer; arguments and errors as in :func:`resolve`.

    Args:
        output_padding: an int, or one per volume axis, each below the stride or the dilation there.

    On the thin axis, with ``e = dil * (K - 1) - 2 * pad`` there, the output is as large as on an axis of the plane, and
    takes the nearest input position: ``(o + (stride - 1 - e) // 2) // stride``, kept inside the volume. So a volume
    that repeats one slice gives, in every slice, what the 2D layer gives on that slice.
    """
    if isinstance(padding, str):
        raise ValueError(f"padding: expected ints for a transposed convolution, got {padding!r}")
    geometry = resolve(kernel, stride, padding, dilation)
    extra = _checked(as_ints(output_padding, "output_padding"), "output_padding", (3,), 0)
    for v, view in enumerate(VIEWS):
        for axis in (view.row, view.column):
            most = max(geometry.stride[axis], geometry.dilation[v][axis]) - 1
            if extra[axis] > most:
                raise ValueError(
                    f"output_padding: expected less than the stride or the dilation, at most {most} along "
                    f"{AXES[axis]}, got {extra}"
                )
    return TransposedGeometry(
        geometry.kernel,
        geometry.stride,
        tuple(
            tuple(0 if axis == view.thin else -origin for axis, origin in enumerate(geometry.origin[v]))
            for v, view in enumerate(VIEWS)
        ),
        geometry.dilation,
        extra,
        tuple(e + more + 1 for e, more in zip(geometry.shrink, extra)),
        tuple((s - 1 - e) // 2 for s, e in zip(geometry.stride, geometry.shrink)),
    )


def as_ints(value: object, name: str) -> int | tuple[int, ...]:
    """``value`` as an int or a tuple of ints (NumPy's included); bools and floats are refused."""
    if type(value) is int or (type(value) is tuple and set(map(type, value)) == {int}):
        return value  # the common case, several times in every call of a layer
    try:
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            return tuple(_int(v) for v in value)
        return _int(value)
    except TypeError:
        raise TypeError(f"{name}: expected an int or a tuple of ints, got {value!r}") from None


def as_int(value: object, name: str) -> int:
    """``value`` as an int; as :func:`as_ints` for a single number."""
    try:
        return _int(value)
    except TypeError:
        raise TypeError(f"{name}: expected an int, got {value!r}") from None


def _int(value: object) -> int:
    if isinstance(value, bool):
        raise TypeError
    return value if type(value) is int else index(value)


def _checked(
    value: int | tuple[int, ...], name: str, lengths: tuple[int, ...], least: int
) -> tuple[int, ...]:
    """``value`` as a tuple of one of ``lengths`` (an int is repeated to the last of them), no entry below ``least``."""
    if isinstance(value, int):
        value = (value,) * lengths[-1]
    if len(value) not in lengths:
        wanted = " or ".join(str(n) for n in lengths)
        raise ValueError(f"{name}: expected an int or {wanted} of them, got {len(value)}: {value}")
    if min(value) < least:
        raise ValueError(f"{name}: expected {least} or more on every axis, got {value}")
    return value


def _per_view(value: int | tuple[int, ...], name: str, least: int) -> list[list[int]]:
    """``value`` as [view][axis]. A triple belongs to the volume's axes, a pair to the kernel's; K_h on the thin one."""
    value = _checked(value, name, (2, 3), least)
    if len(value) == 3:
        return [list(value) for _ in VIEWS]
    return [[value[1] if axis == view.column else value[0] for axis in range(3)] for view in VIEWS]
