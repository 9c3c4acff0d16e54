# ViTDet with ViT-B and a cascade of three box heads; the checkpoint is that of projects/ViTDet,
# cascade_mask_rcnn_vitdet_b_100ep (box AP 54.0). To train it, and timm: see mask_rcnn_vitdet_b.py.
from ..common.cascade import cascade_heads
from .mask_rcnn_vitdet_b import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads = cascade_heads(model.roi_heads)
train.init_checkpoint = (
    "detectron2://ViTDet/COCO/cascade_mask_rcnn_vitdet_b/f325358525/model_final_435fa9.pkl"
)
