"""Answers that close in from both sides the longer they run, and are right whenever they are stopped."""
