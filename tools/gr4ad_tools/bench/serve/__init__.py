"""`gr4ad bench serve`: a generator in its own process, with its neighbours, under open-loop load."""
