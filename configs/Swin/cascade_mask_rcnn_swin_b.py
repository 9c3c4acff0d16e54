# Swin-B with FPN and ViTDet's heads in a cascade of three; the checkpoint is that of Detectron2's
# projects/ViTDet, cascade_mask_rcnn_swin_b_in21k_50ep (box AP 53.9). To train it, start from
# ImageNet: train.init_checkpoint=detectron2://ImageNetPretrained/swin/swin_base_patch4_window7_224_22k.pth
# timm: see mask_rcnn_swin_t_FPN.py.
from ..common.cascade import cascade_heads
from ..common.coco_lsj import dataloader
from ..common.schedule_100ep import lr_multiplier, train
from .mask_rcnn_swin_b_FPN import model, optimizer

model.backbone.bottom_up.drop_path_rate = 0.4
model.backbone.update(norm="LN", square_pad=1024)
model.proposal_generator.head.conv_dims = [-1, -1]
model.roi_heads.box_head.update(conv_dims=[256] * 4, fc_dims=[1024], conv_norm="LN")
model.roi_heads.mask_head.conv_norm = "LN"
model.roi_heads = cascade_heads(model.roi_heads)

train.init_checkpoint = (
    "detectron2://ViTDet/COCO/cascade_mask_rcnn_swin_b_in21k/f342979038/model_final_246a82.pkl"
)
train.max_iter = 184375 // 2  # 50 epochs
lr_multiplier.scheduler.milestones = [163889 // 2, 177546 // 2]
optimizer.lr = 4e-5
