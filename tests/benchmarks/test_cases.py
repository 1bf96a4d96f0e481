"""The table of named layers: shapes against torch, arithmetic by hand, toy variants."""

import pytest
import torch
from cases import CASES, Case, select
from torch.nn import functional as F

BY_ID = {"ids": lambda case: case.name}


@pytest.mark.parametrize("case", CASES, **BY_ID)
def test_output_shape_is_that_of_conv3d(case):
    x = torch.empty(case.input_shape, device="meta")
    weight = torch.empty(*case.weight_shape, case.kernel_size, device="meta")
    out = F.conv3d(x, weight, None, case.stride, case.padding, case.dilation, case.groups)
    assert out.shape == case.output_shape


def test_arithmetic_by_hand():
    case = Case("one", 4, 6, (5, 6, 7), batch=2)
    # 210 output voxels in each of 2 volumes and 6 channels, 9 taps of 4 input channels, a multiply and an add each
    assert case.flops() == 2 * (2 * 6 * 210) * (4 * 9)
    assert case.flops(training=True) == case.flops() * 2  # an image of 4 channels needs no gradient
    assert case.conv3d_flops() == 3 * case.flops()
    # input 2*4*210, output 2*6*210, weight 6*4*9, bias 6; float32
    forward = 2 * 4 * 210 + 2 * 6 * 210 + 6 * 4 * 9 + 6
    assert case.traffic(4) == 4 * forward
    # backward: grad_output, input, weight read; gradients of weight and bias written, none of the input
    assert case.traffic(4, training=True) == 4 * (forward + 2 * 6 * 210 + 2 * 4 * 210 + 2 * 6 * 4 * 9 + 6)
    hidden = Case("hidden", 8, 6, (5, 6, 7))
    assert hidden.flops(training=True) == 3 * hidden.flops()
    backward = 6 * 210 + 8 * 210 + 2 * 6 * 8 * 9 + 6 + 8 * 210
    assert hidden.traffic(2, training=True) == hidden.traffic(2) + 2 * backward


def test_soft_reads_the_union_of_three_planes():
    assert Case("soft", 8, 8, (5, 5, 5), kind="soft").taps == 27 - 8  # all but the corners of the cube
    assert Case("acs", 8, 8, (5, 5, 5)).taps == 9


def test_a_strided_pointwise_layer_reads_only_what_it_uses():
    case = Case("skip", 8, 8, (6, 6, 6), kernel_size=1, stride=2, bias=False)
    assert case.traffic(1) == 8 * 27 + 8 * 27 + 64


@pytest.mark.parametrize("case", CASES, **BY_ID)
def test_small_keeps_the_geometry(case):
    small = case.small()
    assert max(small.size) <= 16
    assert small.in_channels <= 8
    assert small.out_channels <= 8
    assert len(set(small.size)) == 3
    for field in ("kernel_size", "stride", "padding", "dilation", "bias", "kind", "name"):
        assert getattr(small, field) == getattr(case, field)
    assert (small.groups > 1) == (case.groups > 1)
    assert (small.groups == small.in_channels == small.out_channels) == (
        case.groups == case.in_channels == case.out_channels
    )
    if case.split is not None:
        assert sum(small.split) == small.out_channels
        assert [count > 0 for count in small.split] == [count > 0 for count in case.split]


def test_small_keeps_the_views_of_a_split():
    small = Case("split", 64, 64, (9, 9, 9), split=(60, 0, 4)).small()
    assert small.split == (4, 0, 1)


def test_each_suite_has_every_class_it_promises():
    promised = {"first layer", "narrow", "wide", "strided", "dilated", "soft", "depthwise"}
    assert {case.family for case in select("smoke")} == promised
    assert {case.family for case in select("layers")} == promised | {"pointwise", "grouped"}


def test_select_by_part_of_the_name_and_by_glob():
    assert [case.name for case in select("layers", ("acsunet-enc1",))] == ["acsunet-enc1a", "acsunet-enc1b"]
    assert {case.name for case in select(None, ("soft-*", "mean-64"))} == {"soft-32", "soft-64", "mean-64"}
    assert select("smoke", ("no such layer",)) == []


def test_resized():
    case = Case("one", 8, 8, (4, 5, 6)).resized(batch=3, scale=2)
    assert (case.batch, case.size) == (3, (8, 10, 12))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"kind": "hard"}, "kind must be one of"),
        ({"groups": 3}, "groups=3 must divide"),
        ({"split": (1, 1, 1)}, "must add up"),
        ({"size": (2, 5, 5), "padding": 0}, "smaller than one voxel"),
    ],
)
def test_bad_cases_are_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        Case("bad", **{"in_channels": 8, "out_channels": 8, "size": (5, 5, 5), **changes})
