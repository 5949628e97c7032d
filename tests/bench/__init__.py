"""What the agent costs and how quick it is, printed as ratios and figures; nothing here fails on a time."""
