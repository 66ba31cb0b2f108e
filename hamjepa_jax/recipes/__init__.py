"""Recipes: what a variant's name says, as the groups of a config."""
