"""Engines that answer requests: the `Sampler` protocol and its implementations."""
