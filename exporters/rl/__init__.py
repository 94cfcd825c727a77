"""Ensembles of Stable-Baselines3 agents: from their zips to one graph.

bundle        the files: a folder, an archive of archives, or one agent alone
manifest      `manifest.json`, and what the request's configuration adds to it
saved_data    what an agent's `data` says in plain JSON; its pickles are never decoded
networks      layers from the tensors' names and shapes
normalization VecNormalize's statistics
agents        one agent, read and checked
ensemble      all of them, checked against each other; what the card says of them
graph         all agents merged into one torch module
reference     the same computed agent by agent in double precision, for the verification
export        from request to published version
"""
