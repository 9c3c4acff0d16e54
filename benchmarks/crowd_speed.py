"""How long the crowd protocol takes: 4,000 made-up images with 100 detections each."""

import time

import numpy as np
from tqdm import tqdm

from odam_d2.evaluation.crowd import CrowdImage, crowd_metrics

__all__ = ["made_up_images"]


def made_up_images(count: int, objects: int = 23, detections: int = 100) -> list[CrowdImage]:
    """Crowds of as many people as CrowdHuman has; detections are those, moved a little."""
    random, images = np.random.default_rng(0), []
    for _ in tqdm(range(count), "made-up images"):
        corner = random.uniform(0, [700, 400], (objects, 2))
        boxes = np.hstack([corner, corner + random.uniform(40, 200, (objects, 2))])
        near = boxes[random.integers(0, objects, detections)]
        images.append(
            CrowdImage(
                size=(600, 900),
                objects=boxes,
                categories=np.zeros(objects, dtype=np.int64),
                ignore=random.random(objects) < 0.1,
                boxes=near + random.normal(0, 8, near.shape),
                scores=random.random(detections),
                classes=np.zeros(detections, dtype=np.int64),
            )
        )
    return images


def main() -> None:
    images = made_up_images(4000)
    start = time.perf_counter()
    crowd_metrics(images)
    print(f"{len(images)} images: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
