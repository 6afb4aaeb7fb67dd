"""``janus-placement-controller``: registry and placement; never on the token path."""
