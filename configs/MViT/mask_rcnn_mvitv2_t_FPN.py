# MViTv2-T (Li et al., CVPR 2022) in the zoo's Mask R-CNN with FPN; the checkpoint is that of
# projects/MViTv2 of Detectron2, mask_rcnn_mvitv2_t_3x (box AP 48.3). To train it, start from
# ImageNet: train.init_checkpoint=detectron2://ImageNetPretrained/mvitv2/MViTv2_T_in1k.pyth
# The backbone needs the package timm.
from functools import partial

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.modeling import MViT
from torch import nn

from ..common.coco_multiscale import dataloader
from ..common.rgb_mask_rcnn import model
from ..common.schedule_100ep import lr_multiplier, train

model.backbone.bottom_up = L(MViT)(
    embed_dim=96,
    depth=10,
    num_heads=1,
    last_block_indexes=(0, 2, 7, 9),
    residual_pooling=True,
    drop_path_rate=0.2,
    norm_layer=partial(nn.LayerNorm, eps=1e-6),
    out_features=("scale2", "scale3", "scale4", "scale5"),
)
model.backbone.in_features = "${.bottom_up.out_features}"

dataloader.train.total_batch_size = 64
train.max_iter = 67500  # 36 epochs
train.init_checkpoint = (
    "detectron2://MViTv2/mask_rcnn_mvitv2_t_3x/f307611773/model_final_1a1c30.pkl"
)
lr_multiplier.scheduler.milestones = [52500, 62500]
lr_multiplier.warmup_length = 250 / train.max_iter

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.lr = 1.6e-4
optimizer.params.overrides = {
    name: {"weight_decay": 0.0} for name in ("pos_embed", "rel_pos_h", "rel_pos_w")
}
