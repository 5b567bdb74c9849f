"""Fixtures of a user's own transaction."""

from lent_places import databases_of_users, elsewhere, place

__all__ = ["databases_of_users", "elsewhere", "place"]
