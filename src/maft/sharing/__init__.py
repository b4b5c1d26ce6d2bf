"""Finetuned agents for others: merged into their base, and on the hub, with cards that tell how they came about."""
