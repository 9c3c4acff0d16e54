"""ODAM for Detectron2: one heat map per decision of an object detector, for every detection."""
