"""Only what pyproject.toml cannot say: what is native is built by cffi. Everything else stands there."""

from setuptools import setup

setup(cffi_modules=["shm/build.py:ffibuilder", "app/api/codec/build.py:ffibuilder"])
