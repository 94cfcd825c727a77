"""Redis: connections, key names, Lua scripts. Nothing else in the project knows a key."""
