"""The model gateway: the only way out of a sandbox, one file per vendor protocol."""
