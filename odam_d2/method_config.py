"""Keys of methods of ``MODEL.ODAM.METHOD`` beside those that run on random masks."""

from detectron2.config import CfgNode as CN

__all__ = ["add_method_keys"]


def add_method_keys(odam: CN) -> None:
    """
    Args:
        odam: ``cfg.MODEL.ODAM``, extended in place.
    """
    odam.SMOOTH_GRAD = _smooth_grad_keys()


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
