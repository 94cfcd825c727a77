"""Which versions exist, which are loaded, and how they come and go."""
