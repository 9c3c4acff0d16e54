"""Names of targets, and the scalars that they stand for."""

import pytest

from odam_d2.core.targets import DEFAULT_TARGETS
from odam_d2.modeling.targets import Classes, ClassScore, Combined, Side, Targets

NAMES = ("cat", "dog", "7")


def named(names, count, class_names=None):
    return Targets.named(names, Classes(count, class_names)).requested


def test_indices_of_every_kind():
    *found, combined = named(["class", "class:dog", "class:0", "bottom", "combined"], 3, NAMES)
    assert found == [ClassScore("class"), ClassScore("class:dog", 1), ClassScore("class:0", 0),
                     Side("bottom")]  # fmt: skip
    assert isinstance(combined, Combined)


def test_a_name_wins_over_a_number():
    assert named(["class:7"], 8, NAMES)[0].index == 2
    assert named(["class:7"], 8)[0].index == 7


def test_defaults_are_the_class_and_the_sides_in_box_order():
    targets = named(DEFAULT_TARGETS, 1)
    assert targets[0] == ClassScore()
    assert [t.name for t in targets[1:]] == ["left", "top", "right", "bottom"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("left:2", "unknown target 'left:2'"),
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
        named([target], 3, NAMES)


def test_no_target_and_a_target_twice():
    with pytest.raises(ValueError, match="no targets"):
        named([], 3)
    with pytest.raises(ValueError, match="twice: left"):
        named(["left", "left"], 3)


def test_one_target_and_classes_without_names():
    assert named("class", 3) == (ClassScore(),)
    with pytest.raises(ValueError, match="'class:cat'; classes are numbered 0 to 2, and their nam"):
        named("class:cat", 3)
    with pytest.raises(ValueError, match="twice: left, top"):
        named(["top", "left", "class", "left", "top"], 3)
