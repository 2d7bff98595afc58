"""What leaves a run: its model with a card, or merged with another."""
