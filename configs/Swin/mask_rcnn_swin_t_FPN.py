# Swin-T (Liu et al., ICCV 2021) in the zoo's Mask R-CNN with FPN, trained as its authors do: AdamW,
# 36 epochs of 16 images (with the zoo's steps). Detectron2 has no trained checkpoint of it: it
# starts from the authors' ImageNet weights. Stochastic depth (drop_path_rate) needs the package
# timm; model.backbone.bottom_up.drop_path_rate=0 does without, no difference in evaluation.
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.modeling import SwinTransformer

from ..common.coco_multiscale import dataloader
from ..common.rgb_mask_rcnn import model

model.backbone.bottom_up = L(SwinTransformer)(
    embed_dim=96,
    depths=[2, 2, 6, 2],
    num_heads=[3, 6, 12, 24],
    window_size=7,
    drop_path_rate=0.2,
)
model.backbone.in_features = ["p0", "p1", "p2", "p3"]

train = model_zoo.get_config("common/train.py").train
train.max_iter = 270000
train.init_checkpoint = (
    "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
    "swin_tiny_patch4_window7_224.pth?matching_heuristics=True"
)
lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_3x

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.weight_decay = 0.05
optimizer.params.overrides = {"relative_position_bias_table": {"weight_decay": 0.0}}
