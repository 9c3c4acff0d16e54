# Detectron2's zoo model. The zoo has no trained checkpoint of it: it starts from ImageNet's
# weights, so --eval-only and the demo need yours, train.init_checkpoint=FILE.
from detectron2 import model_zoo

_zoo = model_zoo.get_config("COCO-Detection/fcos_R_50_FPN_1x.py")

dataloader, lr_multiplier, optimizer = _zoo.dataloader, _zoo.lr_multiplier, _zoo.optimizer
model, train = _zoo.model, _zoo.train
