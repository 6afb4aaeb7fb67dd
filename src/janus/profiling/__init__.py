"""``janus profile``: measures what this machine's real services take, and fits the rates of a profile to it."""
