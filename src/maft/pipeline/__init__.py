"""The loop: debate, vote, curate, finetune, evaluate."""
