"""What a stage will need, worked out from shapes: FLOPs, bytes, hours."""
