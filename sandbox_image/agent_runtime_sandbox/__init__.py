"""What runs inside a sandbox: the runner, its journal, its files, and one driver per agent.

Nothing of the runtime is imported here, and nothing here is trusted by the runtime; the two share
`frames` only.
"""
