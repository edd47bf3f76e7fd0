"""``fedtune estimate``: what a configuration will take, before anything is loaded."""
