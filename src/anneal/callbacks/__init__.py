"""Callbacks: only what Lightning lacks."""
