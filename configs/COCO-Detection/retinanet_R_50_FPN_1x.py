# Detectron2's zoo model with its trained checkpoint. Start a training of your own from ImageNet:
# train.init_checkpoint=detectron2://ImageNetPretrained/MSRA/R-50.pkl
from detectron2 import model_zoo

_zoo = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.py", trained=True)

dataloader, lr_multiplier, optimizer = _zoo.dataloader, _zoo.lr_multiplier, _zoo.optimizer
model, train = _zoo.model, _zoo.train
