"""Registers the project's data sets when imported, as `detectron2.data.datasets.builtin` does."""

from .crowdshapes import register_crowdshapes


def register_all() -> None:
    """Register every data set; those already registered are left alone."""
    register_crowdshapes()


register_all()
