# A RetinaNet small enough to be built, trained and run in fractions of a second; six classes.
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BasicBlock

_zoo = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.py")
dataloader, lr_multiplier, optimizer = _zoo.dataloader, _zoo.lr_multiplier, _zoo.optimizer
model, train = _zoo.model, _zoo.train

model.num_classes = 6
model.backbone.update(out_channels=8)
model.backbone.bottom_up.update(
    stages=[
        L(ResNet.make_stage)(
            block_class=BasicBlock,
            num_blocks=1,
            stride_per_block=[stride],
            in_channels=width,
            out_channels=narrow,
            norm="BN",
        )
        for stride, width, narrow in ((1, 64, 8), (2, 8, 12), (2, 12, 16), (2, 16, 20))
    ],
    freeze_at=0,
)
model.backbone.bottom_up.stem.norm = "BN"
model.backbone.top_block.in_channels = 20
model.head.update(input_shape=[ShapeSpec(channels=8)] * 5, conv_dims=[8])
model.max_detections_per_image = 10

dataloader.train.update(total_batch_size=2, num_workers=0)
dataloader.train.dataset.names = dataloader.test.dataset.names = "tiny_lazy"
dataloader.train.mapper.augmentations[0].short_edge_length = [64]
dataloader.test.mapper.augmentations[0].short_edge_length = 64
dataloader.test.num_workers = 0

train.update(init_checkpoint="", max_iter=3, device="cpu", eval_period=0, seed=1)
train.checkpointer.period = 2
