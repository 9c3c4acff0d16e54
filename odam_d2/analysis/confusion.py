"""Which classes are taken for which: a confusion matrix of detections, with background."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .ap_costs import AnalysedImage

__all__ = ["confusion_matrix"]


def confusion_matrix(
    images: Iterable[AnalysedImage], num_classes: int, confidence: float
) -> np.ndarray:
    """
    Count objects by their class and the class that was found in their place.

    A detection is in the place of an object where it is correct or has an error of classification
    (:func:`odam_d2.analysis.error_types.sort_detections`), so at the IoU threshold of the findings.
    An object may have several detections of other classes: each counts.

    Args:
        images: with their findings.
        num_classes: K, of the data set.
        confidence: least score of a detection that counts.

    Returns:
        (K + 1, K + 1) integers, row: class of the object, column: class of the detection. The last
        row is detections in no object's place (wrong place, duplicates, background), the last
        column objects in whose place is no detection; the last of both is 0.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    for image in images:
        free = set(range(len(image.labels)))
        for finding in image.findings:
            if finding.detection is None or image.scores[finding.detection] < confidence:
                continue
            label = num_classes
            if finding.kind in ("correct", "classification"):
                label = int(image.labels[finding.object_row])
                free.discard(finding.object_row)
            counts[label, int(image.classes[finding.detection])] += 1
        for row in free:
            counts[int(image.labels[row]), num_classes] += 1
    return counts
