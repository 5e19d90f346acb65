"""The Claude agent: how it is started, and its lines read as events."""
