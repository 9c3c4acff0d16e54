# COCO with DETR's augmentation: shorter sides of 480 to 800 pixels, for half of the images after a
# random crop.
import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.mapper.update(
    image_format="RGB",
    augmentations=[
        L(T.RandomApply)(
            tfm_or_aug=L(T.AugmentationList)(
                augs=[
                    L(T.ResizeShortestEdge)(
                        short_edge_length=[400, 500, 600], sample_style="choice"
                    ),
                    L(T.RandomCrop)(crop_type="absolute_range", crop_size=(384, 600)),
                ]
            ),
            prob=0.5,
        ),
        L(T.ResizeShortestEdge)(
            short_edge_length=list(range(480, 801, 32)), sample_style="choice", max_size=1333
        ),
        L(T.RandomFlip)(horizontal=True),
    ],
)
