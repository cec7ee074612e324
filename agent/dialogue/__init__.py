"""What a conversation is made of: reading a message (parser, and the model beside it), its state, acting on it, and the answer."""
