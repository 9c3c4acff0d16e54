"""Keys of methods of ``MODEL.ODAM.METHOD`` beside those that run on random masks."""

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
