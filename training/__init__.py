"""Shards to weights to scores: data, masking, model, engine, tracking and tasks. Never imports preprocessing."""
