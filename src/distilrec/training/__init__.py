"""The one training loop, its checkpoints, and the tasks it trains."""
