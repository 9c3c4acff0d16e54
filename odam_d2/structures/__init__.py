from .odam_maps import OdamMaps

__all__ = ["OdamMaps"]
