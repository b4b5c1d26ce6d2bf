"""What the society can do: methods on held-out questions, their accuracy, and the quality of the labels."""
