"""The packages of the wheel: those of the source tree, and configs/ as the package data rept/configs.

Everything else is in pyproject.toml, where found packages cannot be combined with one that has another name.
"""

from setuptools import find_packages, setup

PLUG_INS = ("extractors", "scorers", "datamodules", "repairs")

setup(
    packages=[*find_packages(include=[f"{name}*" for name in ("rept", *PLUG_INS)]), "rept.configs"],
    package_dir={"rept.configs": "configs"},
    package_data={"rept": ["py.typed"], "rept.report": ["assets/*"], "rept.configs": ["*.yaml", "*/*.yaml"]},
)
