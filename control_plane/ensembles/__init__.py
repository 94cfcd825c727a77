"""Ensembles of agents whose weights learn from rewards: credit, posteriors, policies, off-policy evaluation."""
