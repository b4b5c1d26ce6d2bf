"""How different the agents of a society are (section 4 of the paper)."""
