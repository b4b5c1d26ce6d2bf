"""Hosted services with OpenAI's API: client, spending, sampling and finetuning."""
