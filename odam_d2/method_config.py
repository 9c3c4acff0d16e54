"""Keys of methods of ``MODEL.ODAM.METHOD`` beside RISE and D-RISE."""

from detectron2.config import CfgNode as CN

__all__ = ["add_method_keys"]


def add_method_keys(odam: CN) -> None:
    """
    Args:
        odam: ``cfg.MODEL.ODAM``, extended in place.
    """
    odam.SMOOTH_GRAD = _smooth_grad_keys()
    odam.LAYER_CAM = _layer_cam_keys()
    odam.G_CAME = _g_came_keys()
    odam.D_CLOSE = _d_close_keys()
    odam.VPS = _vps_keys()


def _smooth_grad_keys() -> CN:
    """Of "smooth_grad"."""
    smooth_grad = CN()

    # Noisy copies of each image, each a backward pass of the network for each map. 1 or more.
    smooth_grad.NUM_SAMPLES = 25

    # Standard deviation of the noise, as a share of the range of the image's values; 0 or more. The
    # authors found 0.1 to 0.2 to show most.
    smooth_grad.NOISE = 0.15

    # Seed of the noise.
    smooth_grad.SEED = 0
    return smooth_grad


def _layer_cam_keys() -> CN:
    """Of "layer_cam"."""
    layer_cam = CN()

    # Layers of the backbone whose maps are put together, from the shallow to the deep, such as
    # ["res2", "res4", ""]; "" is what the head reads. [] is the finest layer, and what the head
    # reads.
    layer_cam.LAYERS = []

    # Maps of all layers but the last, scaled to [0, 1], become tanh(GAMMA x). Above 0.
    layer_cam.GAMMA = 2.0
    return layer_cam


def _g_came_keys() -> CN:
    """Of "g_came"."""
    g_came = CN()

    # The least standard deviation of the Gaussians, in cells of the feature map. Above 0.
    g_came.MIN_SIGMA = 1.0
    return g_came


def _d_close_keys() -> CN:
    """Of "d_close". The values are the authors'."""
    d_close = CN()

    # Masked images that the detector sees for each image, dealt out to the levels. 1 or more.
    d_close.NUM_MASKS = 4000

    # Levels of coarseness, and about how many superpixels the coarsest one has; each has twice as
    # many as the one before. 1 or more.
    d_close.LEVELS = 5
    d_close.SEGMENTS = 150

    # Probability that a superpixel is seen, between 0 and 1.
    d_close.KEEP_PROB = 0.5

    # Masks are enlarged by so much more than the image's size, and cut out at random. 0 or more.
    d_close.ENLARGE = 2.2

    # Superpixels: weight of place against colour, above 0, and standard deviation in pixels of the
    # Gaussian that smooths the image before, 0 or more.
    d_close.COMPACTNESS = 10.0
    d_close.SIGMA = 1.0

    # Masked images that the detector sees at once: speed against memory.
    d_close.BATCH_SIZE = 8

    # Seed of the masks.
    d_close.SEED = 0

    # Masks between two saves.
    d_close.CHECK_EVERY = 200

    # Folder where what was read is kept, so that an interrupted run goes on; "" is none.
    d_close.STATE_DIR = ""
    return d_close


def _vps_keys() -> CN:
    """Of "vps", Visual Precision Search."""
    vps = CN()

    # Superpixels of each image, about. 1 or more.
    vps.REGIONS = 64

    # Passes of the detector for each map, at most. To order R regions takes R (R + 1); what is not
    # ordered by then counts as the last region.
    vps.MAX_PASSES = 5000

    # Masked images that the detector sees at once: speed against memory.
    vps.BATCH_SIZE = 8

    # Masks between two saves.
    vps.CHECK_EVERY = 1000

    # Folder where what was read is kept, so that an interrupted run goes on; "" is none.
    vps.STATE_DIR = ""
    return vps
