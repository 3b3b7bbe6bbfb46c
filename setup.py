"""The one thing pyproject.toml cannot say: every Hub file is a module, however many there are."""

from pathlib import Path

from setuptools import setup

hub_files = sorted(file.stem for file in Path(__file__).parent.glob("*_mtmm.py"))
setup(py_modules=[*hub_files, "train_accelerate"])
