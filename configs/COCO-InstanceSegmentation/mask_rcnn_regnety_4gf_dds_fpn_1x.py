# Detectron2's zoo model. The zoo has no trained checkpoint of it (but of a longer training, see
# ../new_baselines): it starts from pycls' ImageNet weights.
from detectron2 import model_zoo

_zoo = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_regnety_4gf_dds_fpn_1x.py")

dataloader, lr_multiplier, optimizer = _zoo.dataloader, _zoo.lr_multiplier, _zoo.optimizer
model, train = _zoo.model, _zoo.train
