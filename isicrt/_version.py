"""The version, in a module with no imports so that a build can read it without the dependencies."""

__version__ = "0.2.0"
