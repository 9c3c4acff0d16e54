"""What ``tools/demo.py`` is made of: inputs, predictor, files, page."""

from odam_d2.data.pictures import read_picture

from .inputs import expand_inputs
from .runner import Demo, plan_folders

__all__ = [
    "Demo",
    "expand_inputs",
    "plan_folders",
    "read_picture",
]
