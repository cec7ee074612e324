"""Policy gradient: on a GPU, the model that writes queries is trained on the reward of its own lists."""
