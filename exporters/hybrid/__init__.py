"""The CNN-LSTM hybrid: configuration, network, Monte Carlo dropout in one pass, and its serving graph."""
