"""Hosted services that speak OpenAI's API: client, spending, sampling and finetuning."""
