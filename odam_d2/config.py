"""The configuration keys that this extension adds to Detectron2's."""

from detectron2.config import CfgNode as CN

__all__ = ["add_odam_config"]


def add_odam_config(cfg: CN) -> None:
    """
    Add ``MODEL.ODAM`` to a Detectron2 config. Call it on the result of ``get_cfg()``, before a file
    or the command line is merged. Calling it again changes nothing.

    Args:
        cfg: the config to extend, in place.
    """
    if "ODAM" in cfg.MODEL:
        return
    cfg.MODEL.ODAM = CN()

    # What to explain, for every detection that the model returns, one heat map for each entry:
    # "class" (score of the predicted class), "class:NAME" or "class:K" (score of another class),
    # "left", "top", "right", "bottom" (that side of the box), "combined" (maximum of the others).
    # An empty list turns explaining off: the model is then plain Detectron2.
    cfg.MODEL.ODAM.TARGETS = ["class", "left", "top", "right", "bottom"]

    # The class score that is differentiated: "probability" (what detections are ranked by) or
    # "logit" (before softmax or sigmoid).
    cfg.MODEL.ODAM.SCORE = "probability"

    # Phi of the heat map: standard deviation of the Gaussian that smooths the gradients, in cells
    # of the feature map. 0 is no smoothing.
    cfg.MODEL.ODAM.SMOOTHING_SIGMA = 0.0

    # Bound on the size of temporary tensors while explaining, in MB. Smaller is slower, not
    # different: instances are explained in chunks that stay under it.
    cfg.MODEL.ODAM.CHUNK_MB = 64
