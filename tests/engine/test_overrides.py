"""Where the values of a flag end and the overrides of a config begin."""

import argparse

import pytest

from odam_d2.engine.overrides import parse_with_overrides


def parse(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--names", nargs="+")
    parser.add_argument("--output")
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parse_with_overrides(parser, ["--seeds", "--names"], argv)
    return args.seeds, args.names, args.output, args.opts


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--seeds 1 2", ([1, 2], None, None, [])),
        ("--seeds 4 SOLVER.MAX_ITER 3", ([4], None, None, ["SOLVER.MAX_ITER", "3"])),
        ("--names a b SEED 3 --seeds", ([1], ["a", "b"], None, ["SEED", "3", "--seeds"])),
        ("--na a MODEL.X.Y 1", ([1], ["a"], None, ["MODEL.X.Y", "1"])),  # a misspelt key is one too
        ("--seeds -4 SEED 3", ([-4], None, None, ["SEED", "3"])),
        ("--output SEED --names x", ([1], ["x"], "SEED", [])),  # the value of another flag
        ("--seeds 2 --output o SEED 3", ([2], None, "o", ["SEED", "3"])),
        ("--names model.weights x.yaml", ([1], ["model.weights", "x.yaml"], None, [])),
        ("SEED 3", ([1], None, None, ["SEED", "3"])),
    ],
)
def test_values_end_where_a_key_begins(argv, expected):
    assert parse(argv.split()) == expected


def test_the_command_line_of_the_program(monkeypatch):
    monkeypatch.setattr("sys.argv", ["program", "--seeds", "7", "OUTPUT_DIR", "x"])
    assert parse() == ([7], None, None, ["OUTPUT_DIR", "x"])


def test_a_word_that_is_neither_value_nor_key_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse(["--seeds", "1", "solver.max_iter", "3"])
    assert "invalid int value: 'solver.max_iter'" in capsys.readouterr().err
