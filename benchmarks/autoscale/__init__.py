"""A replayed workload on a local cluster: autoscaled, and with fixed numbers of instances."""
