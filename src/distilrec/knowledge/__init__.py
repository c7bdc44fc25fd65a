"""What a teacher said, stored once, per example."""
