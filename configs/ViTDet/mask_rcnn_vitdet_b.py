# ViTDet with ViT-B (Li et al., ECCV 2022): the zoo's model, trained as in projects/ViTDet of
# Detectron2, mask_rcnn_vitdet_b_100ep, whose checkpoint this is (box AP 51.6). To train it, start
# from MAE: train.init_checkpoint=
#     'detectron2://ImageNetPretrained/MAE/mae_pretrain_vit_base.pth?matching_heuristics=True'
# The backbone needs the package timm.
from functools import partial

from detectron2 import model_zoo
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate

from ..common.coco_lsj import dataloader
from ..common.schedule_100ep import lr_multiplier, train

model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
train.init_checkpoint = (
    "detectron2://ViTDet/COCO/mask_rcnn_vitdet_b/f325346929/model_final_61ccd1.pkl"
)

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.params.lr_factor_func = partial(get_vit_lr_decay_rate, num_layers=12, lr_decay_rate=0.7)
optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}
