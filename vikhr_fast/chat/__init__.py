"""Chats as token ids: one Jinja template for training, generation and export."""
