"""What a trained model's batch norm layers look like."""
