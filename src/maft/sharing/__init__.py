"""Finetuned agents for others: merged into their base, and on the hub, with model cards."""
