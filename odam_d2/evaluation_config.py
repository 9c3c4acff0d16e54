"""The configuration keys of evaluation, ``TEST.ODAM``."""

from detectron2.config import CfgNode as CN

__all__ = ["evaluation_keys"]


def evaluation_keys() -> CN:
    """Evaluation by tools/train_net.py."""
    test = CN()

    # Evaluators beside the one that a data set has anyway (COCO's; CrowdHuman's own): "crowd" (AP,
    # MR^-2, JI by the public protocol of CrowdHuman, and the recall of overlapped objects),
    # "explanation" (how good the heat maps of MODEL.ODAM are; needs its TARGETS), "known_causes"
    # (whether they point at the parts that decide; CrowdShapes only), "causal_recovery" (whether
    # removing what they point at changes what the detector says), "sanity_checks" (whether they
    # change when what the detector has learned is taken from it).
    test.EVALUATORS = []

    test.EXPLANATION = _explanation_keys()
    test.CAUSAL_RECOVERY = _causal_recovery_keys()
    test.SANITY_CHECKS = _sanity_check_keys()
    return test


def _causal_recovery_keys() -> CN:
    """The evaluator "causal_recovery"."""
    recovery = CN()

    # A detection is evaluated when its score is above SCORE_THRESH, its class is right, and its
    # box's IoU with the object is IOU_THRESH or more. Both in [0, 1].
    recovery.SCORE_THRESH = 0.1
    recovery.IOU_THRESH = 0.5

    # Objects of each image, best scores first; -1 is all. Each takes a pass of the detector for
    # each target and fill, and for each target and area (and of signed maps one more for each
    # target), and once for all methods as many more.
    recovery.PER_IMAGE = -1

    # What takes the place of removed pixels: "inpaint" (what is around them), the image's "blur",
    # its "mean" colour, or the same pixels of the "other" image that is next in the data set.
    # Areas, random places and the grid have the first one.
    recovery.FILLS = ["inpaint", "blur", "mean", "other"]

    # How many of a map's highest pixels are removed, in areas of the true part; each above 0.
    recovery.AREAS = [0.25, 0.5, 1.0, 2.0, 4.0]

    # Whether the best place of a grid is looked for where true parts are annotated, too: 81 passes
    # for each target. Where none are, it always is, and takes their place.
    recovery.ORACLE = False

    # Changed images that the detector sees at once: speed against memory.
    recovery.BATCH_SIZE = 8

    # Of random places, and of the order of equal pixels.
    recovery.SEED = 0
    return recovery


def _sanity_check_keys() -> CN:
    """The evaluator "sanity_checks"."""
    sanity = CN()

    # Which detections, as for "causal_recovery".
    sanity.SCORE_THRESH = 0.1
    sanity.IOU_THRESH = 0.5
    sanity.PER_IMAGE = -1

    # How layers are randomised one after the other, from the top down: "cascading" (each together
    # with all above it), "independent" (each alone). Each costs maps of the image for each of some
    # ten layers. All layers together are randomised anyway: [] costs once the maps of the image
    # for that, and once for the same places of another image.
    sanity.ORDERS = ["cascading", "independent"]

    # Of the random parameters.
    sanity.SEED = 0

    # Checkpoints of the same architecture to compare with, "" is none: of another training, and of
    # one on random labels.
    sanity.OTHER_WEIGHTS = ""
    sanity.RANDOM_LABELS = ""
    return sanity


def _explanation_keys() -> CN:
    """The evaluator "explanation": by default the authors' protocol."""
    explanation = CN()

    # A detection is evaluated when its score is above SCORE_THRESH, its class is right, and its
    # box's IoU with the object is IOU_THRESH or more; for each object the one of best score. Both
    # in [0, 1].
    explanation.SCORE_THRESH = 0.1
    explanation.IOU_THRESH = 0.9

    # Of the IoU of a map with the object's mask; each in [0, 1), of a map scaled to [0, 1].
    explanation.MASK_THRESHOLDS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]

    # Deletion and insertion, of class maps. Each takes 2 * (STEPS + 1) passes of the detector.
    explanation.FAITHFULNESS = CN()

    # Detections of each image, best scores first. -1 is all (the authors' protocol), 0 none.
    explanation.FAITHFULNESS.PER_IMAGE = 1

    # Places of a curve after its start. As many pixels change as the object's box has. 1 or more.
    explanation.FAITHFULNESS.STEPS = 10

    # What takes the place of pixels: "random" values, the "mean" colour, or the image's "blur".
    explanation.FAITHFULNESS.FILL = "random"

    # Perturbed images that the detector sees at once: speed against memory.
    explanation.FAITHFULNESS.BATCH_SIZE = 8

    # Of the random fill, and of the order of equal pixels.
    explanation.FAITHFULNESS.SEED = 0
    return explanation
