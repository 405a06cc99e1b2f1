"""Talking to a NATS server: what its bytes mean, who we are to it, and a client on Trio."""
