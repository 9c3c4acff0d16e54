"""How the shipped detectors learned badges that may be anywhere. See docs/model_zoo.md."""
