"""Full ranking, metrics, intervals and the report."""
