import pytest
import torch

from odam_d2.core.targets import DEFAULT_TARGETS, outward, parse_targets

NAMES = ("cat", "dog", "7")


def test_indices_of_every_kind():
    targets = parse_targets(["class", "class:dog", "class:0", "bottom", "combined"], 3, NAMES)
    assert [(t.kind, t.index) for t in targets] == [
        ("class", None), ("class", 1), ("class", 0), ("side", 3), ("combined", None)
    ]  # fmt: skip


def test_a_name_wins_over_a_number():
    assert parse_targets(["class:7"], 8, NAMES)[0].index == 2
    assert parse_targets(["class:7"], 8)[0].index == 7


def test_defaults_are_the_class_and_the_sides_in_box_order():
    targets = parse_targets(DEFAULT_TARGETS, 1)
    assert [t.index for t in targets] == [None, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("middle", "unknown target 'middle'; there are class, .*left, top, right, bottom"),
        ("class:dgo", "did you mean 'dog'.*named cat, dog, 7"),
        ("class:3", "classes are numbered 0 to 2"),
        ("class:4", "classes are numbered 0 to 2"),
        ("class:-1", "classes are numbered 0 to 2"),
        ("class:", "classes are numbered"),
    ],
)
def test_unknown_targets_say_what_there_is(target, message):
    with pytest.raises(ValueError, match=message):
        parse_targets([target], 3, NAMES)


def test_no_target_and_a_target_twice():
    with pytest.raises(ValueError, match="no targets"):
        parse_targets([], 3)
    with pytest.raises(ValueError, match="twice: left"):
        parse_targets(["left", "left"], 3)


def test_outward_grows_when_the_box_grows():
    box = torch.tensor([10.0, 20.0, 30.0, 50.0])
    larger = box + torch.tensor([-1.0, -1.0, 1.0, 1.0])
    assert (outward(larger) - outward(box)).tolist() == [1, 1, 1, 1]
    assert outward(torch.stack([box, larger]))[0].tolist() == [-10, -20, 30, 50]


def test_one_target_and_classes_without_names():
    assert [t.kind for t in parse_targets("class", 3)] == ["class"]
    with pytest.raises(ValueError, match="'class:cat'; classes are numbered 0 to 2, and their nam"):
        parse_targets("class:cat", 3)
    with pytest.raises(ValueError, match="twice: left, top"):
        parse_targets(["top", "left", "class", "left", "top"], 3)
