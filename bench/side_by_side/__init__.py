"""Whole servers, measured in turns."""
