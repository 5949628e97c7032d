"""Pictures for a person to look at: the agent's page, and the dashboard's panels."""
