"""``janus``: starts, stops, shows and checks clusters."""
