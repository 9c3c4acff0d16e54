"""The experiment on crowds: does Odam-Train, does Odam-NMS help? See docs/crowds.md."""
