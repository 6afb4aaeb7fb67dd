"""Hand-written CPU kernels: compiled at first use, and bound. Without a C++ compiler everything runs on torch."""

from janus.model.kernels.library import Library, configure_threads, default_threads, load_library

__all__ = ["Library", "configure_threads", "default_threads", "load_library"]
