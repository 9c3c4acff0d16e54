# The zoo's Mask R-CNN with FPN for backbones that were trained on RGB images of unit variance.
from detectron2 import model_zoo

_constants = model_zoo.get_config("common/data/constants.py").constants

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.pixel_mean = _constants.imagenet_rgb256_mean
model.pixel_std = _constants.imagenet_rgb256_std
model.input_format = "RGB"
