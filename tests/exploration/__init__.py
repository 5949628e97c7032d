"""A seeded exploration: many agents, hostile neighbours, and what must hold whatever comes. See tests/README.md."""
