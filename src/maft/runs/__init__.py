"""A run: its folder, manifest, societies, status and progress."""
