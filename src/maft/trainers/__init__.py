"""Engines that finetune agents: the `Trainer` protocol and its implementations."""
