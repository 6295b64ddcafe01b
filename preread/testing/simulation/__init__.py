"""The parts of the simulated provider: a model that is none, a prefix cache, limits, faults, four
dialects. See preread.testing.provider."""
