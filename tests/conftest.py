"""What has to be imported before any test imports anything else."""

from contextlib import suppress

# torch's compiler imports setuptools, which refuses to if the standard library's distutils is
# already there, as some libraries bring it.
with suppress(ImportError):
    import setuptools  # noqa: F401
