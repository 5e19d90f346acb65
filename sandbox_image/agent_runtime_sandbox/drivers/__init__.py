"""One module per agent kind: start the agent, hand on its native lines untouched."""
