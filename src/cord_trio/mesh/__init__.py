"""Many machines as one fabric: what passes between them, and what they know of each other."""
