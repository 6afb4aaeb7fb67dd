"""Serving benchmark: the cluster, its monolithic mode and other engines, interleaved on one machine in one run."""
