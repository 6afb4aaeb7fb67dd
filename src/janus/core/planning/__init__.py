"""How many instances of each role a load needs: the performance model, the search, and what they are told. Pure."""
