"""Methods on held-out questions, their accuracy with intervals, and the quality of the pseudo-labels."""
