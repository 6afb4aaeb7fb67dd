"""A cluster in virtual time: requests, instances and failures around the policies that serve. Deterministic."""
