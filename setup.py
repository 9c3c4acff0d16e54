"""What ``pyproject.toml`` cannot say: ``configs/`` is packaged from the top of the checkout."""

from setuptools import find_packages, setup

CONFIGS = "odam_d2.model_zoo.configs"

setup(
    packages=[*find_packages(include=["odam_d2", "odam_d2.*"]), CONFIGS],
    package_dir={CONFIGS: "configs"},
)
