"""What came of predictions: found the requests, told to ensembles and experiments, answered once."""
