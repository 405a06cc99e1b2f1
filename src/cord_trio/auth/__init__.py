"""Sealing of what a client hands back. Authentication comes with a later release: until then the gateway is local."""
