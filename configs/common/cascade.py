# From the heads of a Mask R-CNN to those of a Cascade Mask R-CNN.
from detectron2 import model_zoo


def cascade_heads(roi_heads):
    """The zoo's cascade of three stages, each with the box head of ``roi_heads``, and its masks."""
    heads = model_zoo.get_config("common/models/cascade_rcnn.py").model.roi_heads
    heads.box_heads = [roi_heads.box_head for _ in heads.box_heads]
    heads.mask_head = roi_heads.mask_head
    return heads
