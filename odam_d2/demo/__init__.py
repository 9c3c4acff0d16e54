"""What ``tools/demo.py`` is made of: inputs, predictor, files, page."""

from .inputs import expand_inputs, read_picture
from .predictor import ExplainingPredictor, set_score_threshold
from .runner import Demo, plan_folders

__all__ = [
    "Demo",
    "ExplainingPredictor",
    "expand_inputs",
    "plan_folders",
    "read_picture",
    "set_score_threshold",
]
