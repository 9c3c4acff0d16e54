"""
Packaging of odam_d2 alone: ``pip install -e .`` in an environment that has Detectron2.

The bounds are loose, so that pip leaves a working environment as it is. Detectron2 is not among
them: no package index has it under its own name, so pip would find nothing or something else.
``import odam_d2`` says so where it is missing. ``make`` installs exact versions: requirements/.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

VERSION_FILE = Path(__file__).parent / "odam_d2" / "version.py"

setup(
    name="odam_d2",
    version=re.search(r'^__version__ = "(.+)"$', VERSION_FILE.read_text(), re.MULTILINE).group(1),
    description="Heat maps that explain each decision of a Detectron2 object detector",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["odam_d2", "odam_d2.*"]),
    package_data={
        "odam_d2": ["py.typed"],
        "odam_d2.model_zoo": ["weights/**/*.pth"],
        "odam_d2.visualization": ["templates/*"],
    },
    install_requires=[
        "fvcore>=0.1.5",
        "iopath>=0.1.7",
        "jinja2>=3.0",
        "matplotlib>=3.5",
        "numpy>=1.23",
        "omegaconf>=2.1",
        "opencv-python>=4.6",
        "pillow>=9.1",
        "pycocotools>=2.0.4",
        "pyyaml>=5.1",
        "scipy>=1.9",
        "tabulate",
        "torch>=2.0",
        "torchvision>=0.15",
        "tqdm>=4.60",
    ],
    extras_require={
        "dev": ["hypothesis>=6.80", "mypy>=2.4", "pytest-xdist>=3.0", "pytest>=7.0", "ruff>=0.17"],
        "vit": ["timm>=0.9"],  # what Detectron2's ViT and MViT import
    },
)
