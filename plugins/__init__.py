"""Guests in other people's houses: Pillow's image plugin."""
