"""How this project's costs grow, and how long its changes of state take: `make bench-scale`."""
