"""Speed, side by side: cord_trio, the floors and the peers in one run. `python -m bench`."""
