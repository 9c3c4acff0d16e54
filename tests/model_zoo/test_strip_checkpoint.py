"""A stripped checkpoint has the weights of the model, and nothing else."""

import pytest
import torch

from odam_d2.errors import UserError
from odam_d2.model_zoo import strip_checkpoint


def test_keeps_all_weights_and_drops_the_rest(tmp_path):
    big = torch.arange(100_000, dtype=torch.float64)
    # a view of a larger storage, a half precision parameter and an integer buffer
    model = {"view": big[:3], "half": torch.ones(2, dtype=torch.float16), "count": torch.tensor(7)}
    source, target = tmp_path / "in.pth", tmp_path / "new" / "out.pth"
    torch.save({"model": model, "optimizer": {"momentum": big}, "iteration": 9}, source)
    size = strip_checkpoint(source, target)
    kept = torch.load(target, weights_only=True)
    assert kept.keys() == {"model"}
    assert kept["model"].keys() == model.keys()
    assert torch.equal(kept["model"]["view"], torch.tensor([0.0, 1.0, 2.0]))
    assert kept["model"]["view"].dtype == kept["model"]["half"].dtype == torch.float32
    assert kept["model"]["count"].dtype == torch.int64
    assert size == target.stat().st_size < 10_000
    assert list(target.parent.iterdir()) == [target]  # no partial file is left


def test_leaves_out_what_is_named(tmp_path):
    """Only the beginning of a name counts, and an empty one leaves out nothing."""
    source, target = tmp_path / "in.pth", tmp_path / "out.pth"
    torch.save({"model": {"probes.p3": torch.ones(1), "head.probes.p3": torch.ones(1)}}, source)
    strip_checkpoint(source, target)
    assert len(torch.load(target, weights_only=True)["model"]) == 2
    strip_checkpoint(source, target, without="probes.")
    assert list(torch.load(target, weights_only=True)["model"]) == ["head.probes.p3"]


def test_missing_source(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        strip_checkpoint(tmp_path / "none.pth", tmp_path / "out.pth")


def test_a_source_that_cannot_be_read_is_not_called_another_file(tmp_path):
    with pytest.raises(IsADirectoryError):
        strip_checkpoint(tmp_path, tmp_path / "out.pth")


@pytest.mark.parametrize("content", [b"", b"text"])
def test_source_is_no_checkpoint(content, tmp_path):
    (tmp_path / "in.pth").write_bytes(content)
    with pytest.raises(UserError, match="is not a checkpoint"):
        strip_checkpoint(tmp_path / "in.pth", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize("model", [None, [1], "weights", {}, {"a": 3}, {"a": "weights"}])
def test_a_source_without_weights(model, tmp_path):
    torch.save({"model": model}, tmp_path / "in.pth")
    with pytest.raises(UserError, match="'model' holds no weights"):
        strip_checkpoint(tmp_path / "in.pth", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()
