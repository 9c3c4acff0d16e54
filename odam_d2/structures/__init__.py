from .instances_file import load_instances, save_instances
from .odam_maps import OdamMaps

__all__ = ["OdamMaps", "load_instances", "save_instances"]
