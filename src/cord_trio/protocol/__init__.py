"""What bytes mean. Pure: no clock, no randomness, no input or output."""
