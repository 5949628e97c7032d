"""The words that pass from room to room. It imports nothing from the agent."""
