"""What a model can do, measured through the same facade its users have."""
