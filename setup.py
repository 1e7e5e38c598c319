"""Only what pyproject.toml cannot say: the native core is built by cffi. Everything else stands there."""

from setuptools import setup

setup(cffi_modules=["shm/build.py:ffibuilder"])
