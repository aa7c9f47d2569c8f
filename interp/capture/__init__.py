"""The prefill, and the replay of queried rows that captures what the algebra needs."""
