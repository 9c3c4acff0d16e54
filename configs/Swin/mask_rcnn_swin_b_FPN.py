# Swin-B in the zoo's Mask R-CNN with FPN, otherwise as mask_rcnn_swin_t_FPN.py. No trained
# checkpoint: it starts from ImageNet-22k as projects/ViTDet of Detectron2 does.
from .mask_rcnn_swin_t_FPN import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.update(
    embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], drop_path_rate=0.3
)
train.init_checkpoint = "detectron2://ImageNetPretrained/swin/swin_base_patch4_window7_224_22k.pth"
