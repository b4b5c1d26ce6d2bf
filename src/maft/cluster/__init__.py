"""Many machines: the Ray cluster (`connection`), its workers (`pool`), and what all of them see (`storage`)."""
