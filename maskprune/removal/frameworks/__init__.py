"""What the adapters (`maskprune.nnx`, `linen`, `equinox`, `haiku`) share. Must not know training."""
