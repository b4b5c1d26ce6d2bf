"""maft: multiagent finetuning of language models (arXiv 2501.05707)."""

__version__ = "0.1.0"
