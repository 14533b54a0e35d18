"""Learns: the data set, the DALI pipelines, the three models, losses, the loop, checkpoints, curves."""
