"""The configuration keys that this extension adds to Detectron2's."""

from detectron2.config import CfgNode as CN

from .evaluation_config import evaluation_keys
from .method_config import add_method_keys

__all__ = ["add_odam_config"]


def add_odam_config(cfg: CN) -> None:
    """
    Add ``MODEL.ODAM``, ``TEST.ODAM`` and ``MODEL.FCOS`` to a Detectron2 config. Call it on the
    result of ``get_cfg()``, before a file or the command line is merged. Calling it again changes
    nothing.

    Args:
        cfg: the config to extend, in place. Keys of ``MODEL.FCOS`` that another project has added
            are left as they are.
    """
    _add_odam_keys(cfg)
    _add_fcos_keys(cfg)
    if "ODAM" not in cfg.TEST:
        cfg.TEST.ODAM = evaluation_keys()


def _add_odam_keys(cfg: CN) -> None:
    if "ODAM" in cfg.MODEL:
        return
    cfg.MODEL.ODAM = CN()

    # What to explain, for every detection that the model returns, one heat map for each entry:
    # "class" (score of the predicted class), "class:NAME" or "class:K" (score of another class),
    # "left", "top", "right", "bottom" (that side of the box), "combined" (maximum of the others).
    # An empty list turns explaining off: the model is then plain Detectron2.
    cfg.MODEL.ODAM.TARGETS = ["class", "left", "top", "right", "bottom"]

    # How maps are made: "odam", or for comparison another method of docs/methods.md. Of gradients,
    # a backward pass for each map: "grad_cam", "grad_cam_pp" (Grad-CAM++), "ss_grad_cam_pp",
    # "g_came", "input_gradient"; "layer_cam" (one for each layer), "smooth_grad" (many of them). Of
    # the box alone, whatever the image shows: "box_blob", "box_centre", "side_middle". Of masked
    # images: "rise", which runs the detector on about two hundred of them for all maps, "d_close",
    # "d_rise", on thousands (TARGETS must be ["class"] for the latter), "vps", thousands for each.
    cfg.MODEL.ODAM.METHOD = "odam"

    # Chooses METHOD and LAYER by itself, which must be left as they are: "gradient" (of class and
    # sides each what shows causes best by gradients alone) or "faithful" (by MODEL.ODAM.RISE). ""
    # is none: METHOD and LAYER.
    cfg.MODEL.ODAM.PRESET = ""

    # Whether maps show evidence against a decision as well, below zero: what pushes a score down, a
    # side inward. Refused for a METHOD whose maps have no sign, such as "d_rise" or "box_blob".
    cfg.MODEL.ODAM.SIGNED = False

    # The class score that is differentiated: "probability" (what detections are ranked by) or
    # "logit" (before softmax or sigmoid).
    cfg.MODEL.ODAM.SCORE = "probability"

    # Phi of the heat map: standard deviation of the Gaussian that smooths the gradients, in cells
    # of the feature map. 0 is no smoothing.
    cfg.MODEL.ODAM.SMOOTHING_SIGMA = 0.0

    # The feature map on which maps are made: "" for the one that the head reads (fast), or a layer
    # of the backbone, such as "res4" or "net.blocks.11" (one backward pass of the network above
    # that layer for each map). A wrong name is answered with those that there are.
    cfg.MODEL.ODAM.LAYER = ""

    # How GroupNorm in the towers of a dense head (RetinaNet, FCOS) is differentiated. "constant":
    # its mean and variance count as constants, as in the authors' code, which makes the head
    # local and fast. "exact": they tie all cells together, so each map costs a backward pass of
    # the head. Batch norm has constant statistics anyway.
    cfg.MODEL.ODAM.NORM_STATISTICS = "constant"

    # Bound on the size of temporary tensors while explaining, in MB; on other devices than the CPU
    # eight times as much. Smaller is slower, not different: instances are explained in chunks that
    # stay under it.
    cfg.MODEL.ODAM.CHUNK_MB = 64

    cfg.MODEL.ODAM.D_RISE = _d_rise_keys()
    cfg.MODEL.ODAM.RISE = _rise_keys()
    add_method_keys(cfg.MODEL.ODAM)
    cfg.MODEL.ODAM.LOSS = _loss_keys()
    cfg.MODEL.ODAM.NMS = _nms_keys()


def _d_rise_keys() -> CN:
    """Of MODEL.ODAM.METHOD "d_rise". The values are the authors' for COCO."""
    d_rise = CN()

    # Masked images that the detector sees for each image, at most. 1 or more.
    d_rise.NUM_MASKS = 5000

    # Rows and columns of the coarse random grid that becomes a mask. 1 or more.
    d_rise.GRID = 16

    # Probability that a cell of the grid is seen, between 0 and 1.
    d_rise.KEEP_PROB = 0.5

    # Masked images that the detector sees at once: speed against memory.
    d_rise.BATCH_SIZE = 8

    # Seed of the masks.
    d_rise.SEED = 0

    # Stop early once every map of the image is this reliable: how well maps from so many other
    # masks would correlate with it, estimated from two halves. Above 0; 1 is never.
    d_rise.SETTLED = 0.99

    # Masks between two looks at that, and two saves.
    d_rise.CHECK_EVERY = 200

    # Folder where sums are kept, so that an interrupted run goes on where it was; "" is none.
    d_rise.STATE_DIR = ""
    return d_rise


def _rise_keys() -> CN:
    """Of MODEL.ODAM.METHOD "rise". Lengths are shares of a box: of the mean of its sides."""
    rise = CN()

    # Masked images that the detector sees for each image. 1 or more.
    rise.NUM_MASKS = 192

    # Length of the cells of the random grid that becomes masks. Above 0.
    rise.CELL = 1 / 8

    # Masks that share a grid, each of which hides other cells of it. 2 or more: with 4, a mask
    # hides a quarter of the image.
    rise.PARTS = 4

    # Standard deviation of the Gaussian by which what is hidden is blurred. Above 0.
    rise.BLUR = 1 / 7

    # Standard deviation of the Gaussian that smooths maps of classes, and of sides. 0 is none.
    rise.SMOOTHING = 1 / 8
    rise.SIDE_SMOOTHING = 1 / 28

    # Of the preset "faithful", which makes maps by a regression: how far away slopes are alike
    # (standard deviation of a Gaussian), and the variance of the noise in units of that of values.
    # Both above 0.
    rise.CORRELATION = 1 / 10
    rise.NOISE = 0.3

    # Masked images that the detector sees at once: speed against memory.
    rise.BATCH_SIZE = 8

    # Seed of the masks.
    rise.SEED = 0

    # Masks between two saves.
    rise.CHECK_EVERY = 64

    # Folder where what was read is kept, so that an interrupted run goes on; "" is none.
    rise.STATE_DIR = ""
    return rise


def _loss_keys() -> CN:
    """Odam-Train: a loss on the heat maps of the positives of a training batch."""
    loss = CN()

    # A loss of ODAM_LOSS_REGISTRY, such as "OdamTrainLoss"; "" is none: training is Detectron2's.
    loss.NAME = ""

    # Weight among the losses of the detector, 0 or more. The authors use 0.2 for two-stage
    # detectors and 0.5 for one-stage ones. 0 computes the loss for its scalars only.
    loss.WEIGHT = 0.2

    # Iteration from which on it is computed: maps of a detector that finds nothing yet say nothing.
    loss.START_ITER = 0

    # Iterations from there until WEIGHT is reached, linearly. 0 is at once.
    loss.WARMUP_ITERS = 0

    # Positives of each image that get a map, at most; shared fairly by the objects. 1 or more.
    loss.MAX_SAMPLES = 300

    # Maps are compared on a grid with cells of this many pixels of the network's input.
    loss.GRID_STRIDE = 16

    # Whether the gradients that maps are made of are differentiated as well, so that the loss
    # trains the weights of the head through them. False: only the features are trained, as in the
    # authors' code.
    loss.SECOND_ORDER = True

    # OdamTrainLoss: correlations are held within [CLAMP, 1 - CLAMP], beyond which there is no
    # gradient. Above 0, below 0.5.
    loss.CLAMP = 1e-4

    # OdamTrainLoss: detections of different objects are pushed apart where the IoU of their boxes
    # is above this. In [0, 1).
    loss.MIN_OVERLAP = 0.0

    # Every so many iterations, heat maps of the objects of one fixed image go to the writers of
    # Detectron2's event storage, such as TensorBoard. 0 is never.
    loss.VIS_PERIOD = 0
    return loss


def _nms_keys() -> CN:
    """What takes the place of Detectron2's NMS at inference. Training does not change."""
    nms = CN()

    # An entry of ODAM_NMS_REGISTRY: "nms" (Detectron2's, with its own threshold, and a record),
    # "soft_nms" or "odam_nms". "" leaves Detectron2 as it is.
    nms.NAME = ""

    # odam_nms: a candidate stays beside a kept one of its class if their boxes' IoU is at most
    # IOU_THRESH and their maps' correlation below SIM_THRESH_HIGH, or the IoU is above it and the
    # correlation below SIM_THRESH_LOW. All in [0, 1], low <= high. The authors' values for
    # two-stage detectors; for one-stage ones 0.5, 0.8, 0.2.
    nms.IOU_THRESH = 0.6
    nms.SIM_THRESH_HIGH = 0.7
    nms.SIM_THRESH_LOW = 0.3

    # odam_nms: maps are compared on a grid with cells of this many pixels of the network's input.
    nms.GRID_STRIDE = 16

    # soft_nms: "linear" lowers a score by the factor 1 - IoU where the IoU is at
    # least SOFT_IOU_THRESH, in [0, 1]; "gaussian" by exp(-IoU^2 / SOFT_SIGMA), above 0.
    nms.SOFT_METHOD = "linear"
    nms.SOFT_IOU_THRESH = 0.3
    nms.SOFT_SIGMA = 0.5

    # soft_nms: what falls to this score or below is no detection any more, in [0, 1].
    nms.SOFT_SCORE_THRESH = 0.001

    # Whether outputs have, beside "instances", "candidates": all of them, kept or not, with the one
    # that suppressed each, IoU and correlation. Needs a NAME.
    nms.RECORD = False
    return nms


def _add_fcos_keys(cfg: CN) -> None:
    """What ``OdamFCOS`` is built from; the values are those of the FCOS of Detectron2's zoo."""
    fcos = CN()

    # Classes of the detector, without background. 1 or more.
    fcos.NUM_CLASSES = 80

    # Feature maps of the backbone that the head reads, fine to coarse. Objects are shared among
    # them by size: on a map of stride s, a point learns a box whose farthest side is 4 s to 8 s
    # pixels away; the first map also takes nearer ones, the last one farther ones.
    fcos.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]

    # 3x3 convolutions in each of the two towers (classes, boxes) of the head. 1 or more.
    fcos.NUM_CONVS = 4

    # Norm after each of them: "" (none), "GN" (MODEL.FPN.OUT_CHANNELS must be a multiple of 32),
    # "BN", "SyncBN" (both with statistics of their own for each feature map) or "FrozenBN".
    fcos.NORM = "GN"

    # Probability that an untrained model gives to each class at each point, in (0, 1). Small,
    # because nearly all points are background.
    fcos.PRIOR_PROB = 0.01

    # Points learn an object when they are inside its box and, along both axes, closer to the box's
    # centre than this many strides of their feature map. Above 0.
    fcos.CENTER_SAMPLING_RADIUS = 1.5

    # Focal loss, weight (alpha) of foreground against background, in [0, 1]; below 0 is no weight.
    fcos.FOCAL_LOSS_ALPHA = 0.25

    # Focal loss, exponent (gamma) that turns down what is classified well. 0 or more; 0 is none.
    fcos.FOCAL_LOSS_GAMMA = 2.0

    # Detections have a score above this, in [0, 1]. The score is the square root of class
    # probability times centerness.
    fcos.SCORE_THRESH_TEST = 0.2

    # Candidates that each feature map hands to NMS at most, best scores first. 1 or more.
    fcos.TOPK_CANDIDATES_TEST = 1000

    # NMS removes a box whose IoU with a better one of the same class is above this, in [0, 1].
    fcos.NMS_THRESH_TEST = 0.6

    if "FCOS" not in cfg.MODEL:
        cfg.MODEL.FCOS = CN()
    for key, value in fcos.items():
        if key not in cfg.MODEL.FCOS:
            setattr(cfg.MODEL.FCOS, key, value)
