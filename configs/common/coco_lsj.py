# COCO with large-scale jitter (Ghiasi et al., CVPR 2021) at 1024 x 1024, as ViTDet trains with it.
import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L

_size = 1024

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.total_batch_size = 64
dataloader.train.mapper.update(
    image_format="RGB",
    recompute_boxes=True,  # from the masks, which the crop cuts
    augmentations=[
        L(T.RandomFlip)(horizontal=True),
        L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=_size, target_width=_size),
        L(T.FixedSizeCrop)(crop_size=(_size, _size), pad=False),
    ],
)
dataloader.test.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=_size, max_size=_size),
]
