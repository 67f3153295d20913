"""Repositories of git as notes: on servers, on this machine, and through the API of GitHub."""
