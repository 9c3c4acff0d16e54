"""For tests of tools: the first pictures of an embedded data set."""

from contextlib import contextmanager

from detectron2.data import DatasetCatalog, MetadataCatalog

__all__ = ["few_images"]


@contextmanager
def few_images(name, count, source="crowdshapes_val"):
    """Register them as a data set of their own."""
    entries = DatasetCatalog.get(source)[:count]
    DatasetCatalog.register(name, lambda: entries)
    metadata = MetadataCatalog.get(source)
    MetadataCatalog.get(name).set(
        thing_classes=metadata.thing_classes,
        thing_dataset_id_to_contiguous_id=metadata.thing_dataset_id_to_contiguous_id,
        json_file=metadata.json_file,
        image_root=metadata.image_root,
        evaluator_type="coco",
    )
    yield
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
