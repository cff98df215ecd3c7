"""Analyses: one question per file, written as a script that anybody can run and read."""
