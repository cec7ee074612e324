"""Conversations: parse a message, track the state, choose the action, write the answer."""
