# Detectron2's zoo model with its trained checkpoint. The zoo trains it from nothing:
# train.init_checkpoint=''
from detectron2 import model_zoo

_name = "new_baselines/mask_rcnn_regnety_4gf_dds_FPN_400ep_LSJ.py"
_zoo = model_zoo.get_config(_name, trained=True)

dataloader, lr_multiplier, optimizer = _zoo.dataloader, _zoo.lr_multiplier, _zoo.optimizer
model, train = _zoo.model, _zoo.train
