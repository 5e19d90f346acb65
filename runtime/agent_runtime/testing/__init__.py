"""Shipped for hosts: contract suites for adapters, and a scripted model for running agents offline."""
