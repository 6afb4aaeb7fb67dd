"""Janus: Mixture-of-Experts serving with attention and experts on separate, independently scaled servers.

Importing this package needs neither a GPU, nor UCX, nor CuPy: those are loaded by the modules that use them.
"""

__version__ = "0.1.0"
