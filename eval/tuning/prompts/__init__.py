"""Search for better prompts: `evoke tune --prompts`."""
