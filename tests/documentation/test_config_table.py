"""The tables of config keys are what ``add_odam_config`` adds."""

import pytest
from detectron2.config import CfgNode, get_cfg
from hooks import ROOT, hook

from odam_d2 import add_odam_config

config_keys = hook("config_keys")


@pytest.fixture(scope="module")
def nodes():
    return config_keys.config_nodes()


def flat(path, node):
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from flat(f"{path}.{name}", value)
        else:
            yield f"{path}.{name}", value


def test_keys_and_defaults_are_those_of_detectron2_s_nodes(nodes):
    cfg, plain = get_cfg(), get_cfg()
    add_odam_config(cfg)
    before = dict(flat("cfg", plain))
    added = {key: value for key, value in flat("cfg", cfg) if key not in before}
    shown = {
        f"cfg.{path}.{name}": value
        for path, node in nodes.items()
        for name, value in node.items()
        if not isinstance(value, config_keys.Node)
    }
    assert shown == added


def test_every_key_has_its_comment(nodes):
    for path, node in nodes.items():
        for name, comment in node.comments.items():
            if not isinstance(node[name], config_keys.Node):
                assert len(comment) > 10, f"{path}.{name}"
    # One of its own, one above two keys, one that is copied from another node.
    assert nodes["MODEL.ODAM.RISE"].comments["CELL"].startswith("Length of the cells")
    smoothing = nodes["MODEL.ODAM.RISE"].comments
    assert smoothing["SMOOTHING"] == smoothing["SIDE_SMOOTHING"]
    assert nodes["MODEL.FCOS"].comments["PRIOR_PROB"].startswith("Probability that an untrained")


def test_page_has_a_table_for_each_node():
    page = (ROOT / "docs" / "api" / "config_keys.md").read_text()
    shown = config_keys.on_page_markdown(page)
    assert (
        "## MODEL.ODAM.NMS\n\n| key | default | |\n| --- | --- | --- |\n| `NAME` | `''` |" in shown
    )
    assert all(line.count(" | ") <= 2 or "---" in line for line in shown.splitlines())
